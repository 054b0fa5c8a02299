"""Positions of the gathered rows.

R rows of hidden states, N images, Q dream queries, D language width. Row m of the M = N Q gathered ones is row m % Q of
the block of image m // Q.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Blocks(NamedTuple):
    """First rows of the images' blocks: `base_N`, or `unconditional` for images whose `drop_N` is true."""

    base_N: Tensor
    drop_N: Tensor | None = None
    unconditional: Tensor | None = None

    @classmethod
    def of(cls, base_N: Tensor, drop_N: Tensor | None, unconditional: Tensor | None) -> Blocks:
        """Make blocks of contiguous tensors, which the kernels need; a batch's bases are a column of its rows."""
        return cls(base_N.contiguous(), None if drop_N is None else drop_N.contiguous(), unconditional)


@triton.jit
def block_start(
    image: tl.tensor,
    inside: tl.tensor,
    base: tl.tensor,
    drop: tl.tensor | None,
    unconditional: tl.tensor | None,
) -> tl.tensor:
    """Load the first rows of the blocks of those images that are `inside`."""
    start = tl.load(base + image, mask=inside, other=0)
    if drop is not None:
        dropped = tl.load(drop + image, mask=inside, other=0)
        start = tl.where(dropped != 0, tl.load(unconditional), start)
    return start
