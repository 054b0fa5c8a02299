"""Measure the candidates of a case: check that they agree, then time them in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

ROUNDS = 3  # a machine's speed drifts, so each candidate is timed once in each round
CPU_SECONDS = 0.2  # least time of a candidate in a round; do_bench chooses it on a GPU
COPIED_BYTES, MATRIX_SIDE = 2**30, 8192  # sizes for the machine's rates
SMALL_BYTES, SMALL_SIDE = 2**16, 64


class Rates(NamedTuple):
    """Measured speed of a machine: bytes a second in a copy, FLOP a second in a bfloat16 product."""

    bandwidth: float
    matmul: float


@dataclass(frozen=True)
class Case:
    """One computation and the candidates for it; the first candidate that does not fail is the reference.

    Each candidate is called with `make_inputs()` and returns one tensor or several. Its relative error against the
    reference is at most `tolerance`; candidates in `bitwise` equal the first one bitwise. `least_bytes` must be moved.
    """

    name: str
    make_inputs: Callable[[], Sequence[Any]]
    candidates: Mapping[str, Callable[..., Any]]
    least_bytes: float = 0.0
    tolerance: float = 0.02  # a few roundings to bfloat16, each of up to 2**-8
    bitwise: tuple[str, ...] = ()


@dataclass
class Row:
    """Result of one candidate: the seconds of each round, or the reason of its failure."""

    case: str
    candidate: str
    seconds: list[float] = field(default_factory=list)
    failure: str = ""


def measure(case: Case, device: torch.device, small: bool) -> tuple[list[Row], float]:
    """Return a row for each candidate, and the FLOP that torch counts in the first one.

    A failing candidate does not stop the others.
    """
    torch.compiler.reset()  # each case compiles anew: torch gives up on a function after a few shapes
    inputs = case.make_inputs()
    rows = [Row(case.name, name) for name in case.candidates]
    expected: list[Tensor] = []
    flops = 0.0
    for number in range(2 if small else 1 + ROUNDS):
        for row in rows:
            if row.failure:
                continue
            call = partial(case.candidates[row.candidate], *inputs)
            try:
                if number > 0:
                    row.seconds.append(time_call(call, device, small))
                elif row is rows[0]:
                    with FlopCounterMode(display=False) as counter:
                        expected = as_tensors(call())
                    flops = counter.get_total_flops()
                elif not expected:
                    expected = as_tensors(call())
                else:
                    is_bitwise = row.candidate in case.bitwise and not rows[0].failure
                    check_equal(expected, as_tensors(call()), 0.0 if is_bitwise else case.tolerance)
            except Exception as error:
                row.failure = describe(error)
    del inputs, call
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows, flops


def time_call(call: Callable[[], Any], device: torch.device, small: bool) -> float:
    """Return the median seconds of a call; with `small`, those of a single call."""
    if device.type == "cuda":
        from triton.testing import do_bench  # not installed on every machine without a GPU

        return 1e-3 * float(do_bench(call, return_mode="median"))
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float((timer.timeit(1) if small else timer.blocked_autorange(min_run_time=CPU_SECONDS)).median)


def measure_rates(device: torch.device, small: bool) -> Rates:
    """Copy a large tensor (each byte is read and written), and multiply large square matrices."""
    source = torch.zeros(SMALL_BYTES if small else COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = SMALL_SIDE if small else MATRIX_SIDE
    matrix = torch.randn(side, side, device=device).bfloat16()
    return Rates(
        bandwidth=2 * source.nbytes / time_call(lambda: target.copy_(source), device, small),
        matmul=2 * side**3 / time_call(lambda: matrix @ matrix, device, small),
    )


def check_equal(expected: Sequence[Tensor], actual: Sequence[Tensor], tolerance: float) -> None:
    """Compare tensors pairwise by the relative error ||actual - expected|| / ||expected||; a tolerance of 0 is bitwise.

    Raises:
        ValueError: the number of tensors, a shape, or a value differs.
    """
    if (shapes := [each.shape for each in actual]) != [each.shape for each in expected]:
        raise ValueError(
            f"expected shapes {[(*each.shape,) for each in expected]}, got {[(*s,) for s in shapes]}"
        )
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        if tolerance == 0 and not torch.equal(one, other):
            raise ValueError(f"tensor {number} is not bitwise identical to the reference")
        error = float((other.float() - one.float()).norm() / one.float().norm().clamp(min=1e-30))
        if not error <= tolerance:  # NaN fails too
            raise ValueError(
                f"tensor {number}: expected a relative error of at most {tolerance:g}, got {error:.2g}"
            )


def as_tensors(outputs: Any) -> list[Tensor]:
    """Return the tensor or tensors that a candidate returned, detached."""
    return [each.detach() for each in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]


def with_gradients(call: Callable[..., Tensor], trained: Sequence[int]) -> Callable[..., list[Tensor]]:
    """Extend `call` to return the gradients of its `trained` arguments too, for an output gradient of ones."""

    def forward_and_backward(*inputs: Any) -> list[Tensor]:
        output = call(*inputs)
        gradients = torch.autograd.grad(output, [inputs[n] for n in trained], torch.ones_like(output))
        return [output, *gradients]

    return forward_and_backward


def compile_options(small: bool) -> dict[str, Any]:
    """Return the options of torch.compile; with `small`, it traces and generates no code, which takes minutes."""
    if small:
        return {"backend": "aot_eager", "dynamic": False}
    # eager's random numbers, so that the losses of a step can be compared
    return {"backend": "inductor", "dynamic": False, "options": {"fallback_random": True}}


def describe(error: Exception) -> str:
    """Return the error's type and first line, fit for a cell of a table."""
    first_line, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first_line[:200]}".replace("|", "/")
