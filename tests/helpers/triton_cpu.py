"""Triton kernels without a GPU: run by Triton's interpreter, or compiled for a GPU.

`interpreted` and `recorded` replace the kernels of the named modules for the time of a block. The functions that launch
them stay unchanged. `interpreted` runs each launch on CPU tensors, `recorded` only records it. `compiled` compiles a
recorded launch with its types, alignments and options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend, GPUTarget
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from dreamkit import kernels

AMPERE, HOPPER = 80, 90
SHARED = 99 * 1024  # bytes of shared memory of a program on every GPU since the A100


@dataclass
class Launch:
    """A kernel, its grid, and the arguments of its launch, including options such as `num_warps`."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass(frozen=True)
class MachineCode:
    """Numbers of a compiled kernel's tensor-core instructions and register spills, and its bytes of shared memory."""

    tensor_core: int
    spills: int
    shared: int


@contextmanager
def interpreted(*modules: str) -> Iterator[list[Launch]]:
    """Run the kernels of `modules` in Triton's interpreter, on CPU tensors; yield the list of launches.

    `usable` is true inside the block, so the operators use their kernels. The interpreter computes bfloat16 wrongly.
    """
    launches: list[Launch] = []

    class Interpreted(InterpretedFunction):
        rewritten_fn: dict[Callable, Callable] = {}  # noqa: RUF012 (not the shared one, whose kernels refer to restored names)

        def __init__(self, kernel: JITFunction) -> None:
            super().__init__(kernel.fn)
            self.kernel = kernel

        def run(self, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
            launches.append(_launch(self.kernel, grid, args, kwargs))
            super().run(*args, grid=grid, warmup=warmup, **kwargs)

    patch_lang = interpreter._patch_lang

    def patched(function: Callable) -> Any:
        scope = patch_lang(function)
        # Triton 3.6's own fails with a NumPy that does not convert an array of one element to a number
        tl.tensor.__index__ = lambda tensor: tensor.handle.data.item()
        return scope

    # imported first: a module imported inside the block would keep interpreted kernels
    spaces = [import_module(name) for name in modules]
    with ExitStack() as stack:
        stack.enter_context(triton.knobs.runtime.scope())
        triton.knobs.runtime.interpret = True
        # Triton's helpers written in Triton, such as tl.sum, and the namespaces that the interpreter patches for good
        for space in (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base):
            stack.enter_context(_restoring(space))
        stack.enter_context(_restoring(interpreter))
        interpreter._patch_lang = patched
        for space in (tl, tl.standard, *spaces):
            stack.enter_context(_restoring(space))
            _replace(space, Interpreted)
        stack.enter_context(_kernels_usable())
        yield launches


@contextmanager
def recorded(*modules: str) -> Iterator[list[Launch]]:
    """Record the launches of the kernels of `modules` without running them: for tensors on the meta device."""
    launches: list[Launch] = []

    class Recorded:
        def __init__(self, kernel: JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **kwargs: launches.append(_launch(self.kernel, grid, args, kwargs))

    with ExitStack() as stack:
        for module in [import_module(name) for name in modules]:  # all are imported before one is changed
            stack.enter_context(_restoring(module))
            _replace(module, Recorded)
        stack.enter_context(_kernels_usable())
        yield launches


def compiled(launch: Launch, capability: int) -> MachineCode:
    """Compile the machine code of `launch` for a GPU of `capability` (80: A100, 90: H100 and H200)."""
    kernel = launch.kernel
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            kind, specialised = "constexpr", None
        else:
            kind, specialised = native_specialize_impl(
                BaseBackend, value, False, not parameter.do_not_specialize, True
            )
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        elif isinstance(specialised, str):
            attributes[(index,)] = BaseBackend.parse_attr(specialised)
    options = {name: value for name, value in launch.arguments.items() if name not in signature}
    source = (
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple((path, tuple(map(tuple, pairs))) for path, pairs in attributes.items()),
    )
    return _compiled(source, capability, tuple(sorted(options.items())))


@cache
def _compiled(source: tuple, capability: int, options: tuple) -> MachineCode:
    kernel, signature, constants, attributes = source
    kernel_code = triton.compile(
        triton.compiler.ASTSource(
            kernel,
            dict(signature),
            dict(constants),
            {path: [list(pair) for pair in pairs] for path, pairs in attributes},
        ),
        target=GPUTarget("cuda", capability, 32),
        options=dict(options),
    )
    lines = kernel_code.asm["sass"].splitlines()
    return MachineCode(
        tensor_core=sum("HMMA" in line or "HGMMA" in line for line in lines),
        spills=sum("STL" in line or "LDL" in line for line in lines),
        shared=kernel_code.metadata.shared,
    )


def _launch(kernel: JITFunction, grid: tuple[int, ...], args: tuple, kwargs: dict[str, Any]) -> Launch:
    names = kernel.arg_names
    missing = {
        parameter.name: parameter.default for parameter in kernel.params[len(args) :] if parameter.has_default
    }
    arguments = {**missing, **dict(zip(names, args, strict=False)), **kwargs}
    absent = [name for name in names if name not in arguments]
    assert not absent, f"{kernel.__name__} launched without {absent}"
    assert all(
        isinstance(value, Tensor | int | float | tl.dtype | str | None) for value in arguments.values()
    )
    return Launch(kernel, grid, arguments)


def _replace(space: Any, make: Callable[[JITFunction], Any]) -> None:
    for name, value in list(vars(space).items()):
        if isinstance(value, JITFunction):
            setattr(space, name, make(value))


@contextmanager
def _restoring(space: Any) -> Iterator[None]:
    """Restore the names and values of a module or class after the block."""
    before = dict(vars(space))
    try:
        yield
    finally:
        for name in set(vars(space)) - set(before):
            delattr(space, name)
        for name, value in before.items():
            if vars(space).get(name) is not value:
                setattr(space, name, value)


@contextmanager
def _kernels_usable() -> Iterator[None]:
    real_usable = kernels.usable
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith(kernels.__name__) and vars(module).get("usable") is real_usable:
                stack.enter_context(_restoring(module))
                module.usable = lambda tensor: True  # type: ignore[attr-defined]
        yield
