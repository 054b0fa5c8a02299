"""Where the rows that are wanted lie.

R rows of hidden states, N images, Q dream queries, D language width. Row m of the M = N Q wanted ones is row m % Q of
the block of image m // Q.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Blocks(NamedTuple):
    """The first row of each image's block; where `drop_N` is true, it is the `unconditional` one."""

    base_N: Tensor
    drop_N: Tensor | None = None
    unconditional: Tensor | None = None

    @classmethod
    def of(cls, base_N: Tensor, drop_N: Tensor | None, unconditional: Tensor | None) -> Blocks:
        """Blocks whose numbers lie side by side, as the kernels read them: a batch's bases are a column of its rows."""
        return cls(base_N.contiguous(), None if drop_N is None else drop_N.contiguous(), unconditional)


@triton.jit
def block_start(
    image: tl.tensor,
    inside: tl.tensor,
    base: tl.tensor,
    drop: tl.tensor | None,
    unconditional: tl.tensor | None,
) -> tl.tensor:
    """First rows of the blocks of images, of those that are `inside`."""
    start = tl.load(base + image, mask=inside, other=0)
    if drop is not None:
        dropped = tl.load(drop + image, mask=inside, other=0)
        start = tl.where(dropped != 0, tl.load(unconditional), start)
    return start
