"""What a network computes from its condition alone, computed once where the condition is constant.

Layers are told by the module they are in and their name there. While the network predicts, and then alone, each is
shadowed: an entry of the module's `__dict__`, which comes before its submodules, stands in for the layer. So whatever
calls the layer is served, and the modules, their hooks and adapters, and what is saved or copied stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import nn

from dreamkit import Condition

Place = tuple[nn.Module, str]  # a module, and the name of a layer in it
State = tuple[torch.dtype, bool, torch.dtype | None]  # dtype, whether in training, dtype of autocast

_outputs: ContextVar[dict[nn.Module, Any] | None] = ContextVar("outputs", default=None)  # of this thread
_shadowing = Lock()


def cast(condition: Condition, dtype: torch.dtype) -> Condition:
    pooled = condition.pooled
    return Condition(
        condition.context.to(dtype), condition.mask, None if pooled is None else pooled.to(dtype)
    )


def key_value_layers(attention: nn.Module | None) -> Iterator[Place]:
    """The layers that make keys and values of what a cross-attention of diffusers is given; none of no attention."""
    if attention is not None:
        fused = getattr(attention, "fused_projections", False)
        yield from ((attention, name) for name in (("to_kv",) if fused else ("to_k", "to_v")))


def is_compiled(network: nn.Module) -> bool:
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for module in network.modules()
    )


class Constant:
    """A condition that is constant, and what was computed from it: for each state, its cast and layers' outputs."""

    def __init__(self, condition: Condition, places: Iterable[Place]) -> None:
        self.condition = condition
        self._places = list(places)
        self._computed: dict[State, tuple[Condition, dict[nn.Module, Any]]] = {}

    @contextmanager
    def kept(self, dtype: torch.dtype, training: bool) -> Iterator[Condition]:
        """The condition in the network's `dtype`; within, the layers compute once what they compute from it.

        While a CUDA graph is captured, they compute it anew: a graph may be replayed after all that is kept is gone.
        """
        if _is_capturing():
            yield cast(self.condition, dtype)
            return
        kind = self.condition.context.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        state = (dtype, training, autocast)
        if state not in self._computed:
            self._computed[state] = cast(self.condition, dtype), {}
        condition, outputs = self._computed[state]
        token = _outputs.set(outputs)
        _shadow(self._places)
        try:
            yield condition
        finally:
            _unshadow(self._places)
            _outputs.reset(token)


class Constants:
    """The constant conditions of a decoder, by identity. A copy of it, or of the decoder, has none."""

    def __init__(self) -> None:
        self._found: list[Constant] = []

    def __reduce__(self) -> Any:
        return Constants, ()

    @contextmanager
    def holding(self, condition: Condition, places: Iterable[Place]) -> Iterator[None]:
        constant = Constant(condition, places)
        self._found.append(constant)
        try:
            yield
        finally:
            self._found.remove(constant)

    def find(self, condition: Condition) -> Constant | None:
        return next((found for found in tuple(self._found) if found.condition is condition), None)


class _Shadow:
    """Stands in for a layer while any thread predicts, and is the layer to a thread that keeps nothing."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self.users = 0

    def __reduce__(self) -> Any:
        return _Shadow, (self._module, self._name)  # used by nobody

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._module._modules[self._name]
        assert layer is not None
        outputs = None if torch.compiler.is_compiling() else _outputs.get()
        if outputs is None:
            return layer(*args, **kwargs)
        if layer in outputs:
            return outputs[layer]
        output = layer(*args, **kwargs)
        if not _drops_out(layer):
            outputs[layer] = output
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module._modules[self._name], name)


def _is_capturing() -> bool:
    """Whether a CUDA graph is captured: what is computed has no values before it is replayed."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _drops_out(layer: nn.Module) -> bool:
    """Whether an adapter in it does, anew in each step."""
    return any(isinstance(inner, nn.Dropout) and inner.training for inner in layer.modules())


def _shadow(places: list[Place]) -> None:
    with _shadowing:
        for module, name in places:
            module.__dict__.setdefault(name, _Shadow(module, name)).users += 1


def _unshadow(places: list[Place]) -> None:
    with _shadowing:
        for module, name in places:
            shadow = module.__dict__[name]
            shadow.users -= 1
            if not shadow.users:
                del module.__dict__[name]
