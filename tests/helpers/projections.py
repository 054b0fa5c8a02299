"""Problems of the query projection, solved by the operator and by the libraries' own modules.

N images, Q queries, R rows of hidden states, D language width, C context width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dreamkit.kernels.query_projection import query_projection
from dreamkit.kernels.query_projection.tiles import FUSED_ROWS
from triton_cpu import Launch, interpreted

PACKAGE = "dreamkit.kernels.query_projection."
KERNELS = tuple(PACKAGE + name for name in ("norm", "projection"))
EPS = 1e-5
WIDE = st.integers(8, 40)  # so wide that the terms of the norm's gradient do not cancel in float32


@contextmanager
def kernels_run() -> Iterator[list[Launch]]:
    """Run the kernels in the interpreter, which also runs the fused one in float64."""

    def is_fused(rows: int, hidden: torch.dtype, weight: torch.dtype) -> bool:
        return rows <= FUSED_ROWS

    with interpreted(*KERNELS) as launches, patch(f"{PACKAGE[:-1]}.is_fused", is_fused):
        yield launches


class Problem(NamedTuple):
    """Arguments of the query projection."""

    hidden: Tensor
    base: Tensor
    queries: int
    norm_weight: Tensor
    offset: float
    layers: list[tuple[Tensor, Tensor | None]]
    drop: Tensor | None
    unconditional: Tensor | None
    pooled: tuple[Tensor, Tensor | None] | None

    def leaves(self) -> list[Tensor]:
        layers = [*self.layers, *([] if self.pooled is None else [self.pooled])]
        return [
            self.hidden,
            self.norm_weight,
            *(tensor for layer in layers for tensor in layer if tensor is not None),
        ]

    def to(self, dtype: torch.dtype) -> Problem:
        """Return a copy with fresh leaves of another dtype."""

        def cast(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        return self._replace(
            hidden=cast(self.hidden),
            norm_weight=cast(self.norm_weight),
            layers=[(cast(weight), cast(bias)) for weight, bias in self.layers],
            pooled=self.pooled and (cast(self.pooled[0]), cast(self.pooled[1])),
        )

    def used_base(self) -> Tensor:
        """Return the first row of each image's block: that of the unconditional block for a dropped image."""
        if self.drop is None:
            return self.base
        return torch.where(self.drop, self.unconditional, self.base)

    def outputs(self) -> tuple[Tensor, ...]:
        """Return the operator's context, and its pooled vector if there is one."""
        context, pooled = query_projection(
            self.hidden,
            self.used_base(),
            self.queries,
            norm_weight=self.norm_weight,
            eps=EPS,
            offset=self.offset,
            layers=self.layers,
            pooled=self.pooled,
        )
        assert (pooled is None) == (self.pooled is None)
        return (context,) if pooled is None else (context, pooled)

    def module_outputs(self) -> tuple[Tensor, ...]:
        """Compute the same as the parts do: indexing, the language model's norm, linear layers."""
        norm = (Gemma2RMSNorm if self.offset else LlamaRMSNorm)(self.hidden.shape[-1], eps=EPS)
        base = self.used_base()
        rows = base[:, None] + torch.arange(self.queries, device=base.device)
        hidden = self.hidden.flatten(0, -2)
        if hidden.dtype == torch.float64:  # the libraries' norms compute in float32
            x = hidden[rows]
            x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (self.offset + self.norm_weight)
        else:
            del norm.weight
            norm.weight = self.norm_weight
            x = norm(hidden[rows])
        pooled = () if self.pooled is None else (F.linear(x.mean(1), *self.pooled),)
        context = x
        for index, (weight, bias) in enumerate(self.layers):
            context = F.linear(F.gelu(context) if index else context, weight, bias)
        return context, *pooled

    def gradients(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the gradients of the leaves, for fixed random gradients of the outputs."""
        generator = torch.Generator().manual_seed(7)
        seeds = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in outputs]
        return list(torch.autograd.grad(outputs, self.leaves(), seeds))


def make_problem(
    images: int = 2,
    queries: int = 3,
    dim: int = 5,
    width: int = 4,
    *,
    offset: float = 0.0,
    bias: bool = True,
    second: bool = False,
    pooled: bool = False,
    drop: bool = False,
    twice: bool = False,
    spare: int = 1,
    strided: bool = False,
    batched: bool = False,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """Make blocks in random order with `spare` rows after each; the last block is the unconditional one."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(device, dtype)

    def spread(vector: Tensor) -> Tensor:
        """Return the same numbers with a stride of 2 if `strided`."""
        return torch.stack([vector, vector], 1)[:, 0] if strided else vector

    rows = (images + 1) * (queries + spare)
    hidden = random(rows, 2 * dim)[:, ::2] if strided else random(rows, dim)
    if batched:
        hidden = hidden.unflatten(0, (images + 1, queries + spare))
    bases = torch.randperm(images + 1, generator=generator) * (queries + spare)
    base = bases[:images].clone()
    if twice and images > 1:
        base[-1] = base[0]
    dropped = (torch.rand(images, generator=generator) < 0.5).to(device) if drop else None
    layers = [(random(width, dim, scale=dim**-0.5), spread(random(width)) if bias else None)]
    if second:
        layers.append((random(3, width, scale=width**-0.5), random(3) if bias else None))
    return Problem(
        hidden,
        spread(base.to(device)),
        queries,
        spread(random(dim) + 1 - offset),
        offset,
        layers,
        None if dropped is None else spread(dropped),
        bases[-1].to(device) if drop else None,
        (random(2, dim), random(2) if bias else None) if pooled else None,
    ).to(dtype)


def problems(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Problem]:
    strategies = {
        "images": st.integers(0, 3),
        "queries": st.integers(1, 5),
        "dim": st.integers(1, 40),
        "width": st.integers(1, 40),
        "offset": st.sampled_from([0.0, 1.0]),
        "seed": st.integers(0, 999),
        "spare": st.integers(0, 2),
        **{
            name: st.booleans()
            for name in ("bias", "second", "pooled", "drop", "twice", "strided", "batched")
        },
        **fixed,
    }
    return st.builds(make_problem, **strategies)


def check(problem: Problem) -> None:
    """Compare the operator with the modules: shapes, dtypes, values and gradients."""
    actual, expected = problem.outputs(), problem.module_outputs()
    assert [out.shape for out in actual] == [out.shape for out in expected]
    assert [out.dtype for out in actual] == [out.dtype for out in expected]
    for own, other in zip(
        [*actual, *problem.gradients(actual)], [*expected, *problem.gradients(expected)], strict=True
    ):
        assert error(own, other) < (1e-10 if own.dtype == torch.float64 else 1e-5)


def error(actual: Tensor, expected: Tensor) -> float:
    """Return ||actual - expected|| / ||expected||, or 0 if both are zero; NaN is not below any bound."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).norm()
    return 0.0 if difference == 0 else float(difference / expected.norm())
