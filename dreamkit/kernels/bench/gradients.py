"""Candidates with a backward pass after them, and compiled ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

EAGER, COMPILED, TUNED = "eager", "torch.compile", "torch.compile, max-autotune"


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
    candidates: Mapping[str, Callable[..., Tensor]],
    learned: Sequence[int],
    is_backward: bool,
    small: bool,
    tuned: bool = False,
) -> dict[str, Callable[..., Any]]:
    """The candidates with or without a backward pass, and the first of them compiled, as the second.

    `tuned`: compiled once more, by trying many kernels, which takes long. Each case compiles anew: torch gives up on a
    function after a few shapes. A trial, `small`, only traces.
    """
    torch.compiler.reset()
    (name, first), *others = candidates.items()
    modes = {COMPILED: None, **({TUNED: "max-autotune-no-cudagraphs"} if tuned else {})}
    compiled = {how: _compiled(first, None if small else mode, small) for how, mode in modes.items()}
    everyone = {name: first, **compiled, **dict(others)}
    if is_backward:
        return {name: with_backward(run, learned) for name, run in everyone.items()}
    return {name: forward_only(run) for name, run in everyone.items()}


def _compiled(run: Callable[..., Tensor], mode: str | None, small: bool) -> Callable[..., Tensor]:
    backend = "aot_eager" if small else "inductor"
    return torch.compile(run, dynamic=False, fullgraph=True, backend=backend, mode=mode)
