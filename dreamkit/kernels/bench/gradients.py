"""Candidates with a backward pass after them, and compiled ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

EAGER, COMPILED = "eager", "torch.compile"


def with_backward(run: Callable[..., Tensor], learned: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """Gives the output, and the gradients of the arguments numbered in `learned` for an output gradient of ones."""

    def both(*inputs: Any) -> tuple[Tensor, ...]:
        output = run(*inputs)
        grads = torch.autograd.grad(output, [inputs[n] for n in learned], torch.ones_like(output))
        return output.detach(), *grads

    return both


def forward_only(run: Callable[..., Any]) -> Callable[..., Any]:
    """Without autograd."""

    @torch.no_grad()
    def forward(*inputs: Any) -> Any:
        return run(*inputs)

    return forward


def directions(
    candidates: Mapping[str, Callable[..., Tensor]], learned: Sequence[int], is_backward: bool, small: bool
) -> dict[str, Callable[..., Any]]:
    """The candidates with or without a backward pass, and the first of them compiled, as the second.

    Each case compiles anew: torch gives up on a function after a few shapes. A trial, `small`, only traces.
    """
    torch.compiler.reset()
    backend = "aot_eager" if small else "inductor"
    (name, first), *others = candidates.items()
    compiled = torch.compile(first, dynamic=False, fullgraph=True, backend=backend)
    everyone = {name: first, COMPILED: compiled, **dict(others)}
    if is_backward:
        return {name: with_backward(run, learned) for name, run in everyone.items()}
    return {name: forward_only(run) for name, run in everyone.items()}
