"""Dream states projected into a decoder's context."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, compile_options, with_gradients
from dreamkit.kernels.query_projection import query_projection

DIM, QUERIES = 4096, 64  # LLaMA-7B's width, the paper's dream queries
IMAGES, WIDTHS = (1, 4, 16, 64, 256), (768, 1024, 2048)  # contexts of SD 1.5, SD 2.1 and SDXL
EPS = 1e-6
TRAINED = (0, 3, 4)  # arguments: hidden states, the norm's weight and the matrix


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Forward at every size, and forward and backward at the first width."""
    compiled = torch.compile(eager, **compile_options(small))
    candidates = {"eager": eager, "torch.compile": compiled, "ours": ours}
    forward = {name: torch.no_grad()(call) for name, call in candidates.items()}
    backward = {name: with_gradients(call, TRAINED) for name, call in candidates.items()}
    widths, dim, queries = ((16,), 32, 4) if small else (WIDTHS, DIM, QUERIES)
    for images in IMAGES[:2] if small else IMAGES:
        for width in widths:
            name = f"query projection, images {images}, width {width}"
            make_inputs = partial(inputs, images, width, device, dim, queries)
            moved = least_bytes(images, width, dim, queries)
            yield Case(f"{name}, forward", make_inputs, forward, *moved[:1])
            if width == widths[0]:
                yield Case(f"{name}, forward and backward", make_inputs, backward, *moved[1:])


def least_bytes(images: int, width: int, dim: int = DIM, queries: int = QUERIES) -> tuple[int, int]:
    """Return the fewest bytes to move: forward, and forward and backward.

    Forward reads rows, the norm's weight and the matrix, and writes the context. Backward reads the gradient of the
    context, rows and matrix, and writes a gradient of each.
    """
    read, context = 2 * dim * (images * queries + 1 + width), 2 * images * queries * width
    return read + context, 3 * read + 2 * context


def inputs(
    images: int, width: int, device: torch.device, dim: int = DIM, queries: int = QUERIES
) -> tuple[Tensor, ...]:
    """Return hidden states (R, D), first row (N,) and all rows (N, Q) of each image, norm weight (D,), matrix (C, D).

    Every other block of Q rows belongs to an image, as in a batch.
    """
    hidden = torch.randn(2 * images * queries, dim, device=device).bfloat16()
    base = 2 * queries * torch.arange(images, device=device)
    norm_weight = (1 + 0.1 * torch.randn(dim, device=device)).bfloat16()
    matrix = (dim**-0.5 * torch.randn(width, dim, device=device)).bfloat16()
    rows = base[:, None] + torch.arange(queries, device=device)
    return hidden.requires_grad_(), base, rows, norm_weight.requires_grad_(), matrix.requires_grad_()


def eager(hidden: Tensor, base: Tensor, rows: Tensor, norm_weight: Tensor, matrix: Tensor) -> Tensor:
    """Index, normalize as LLaMA in transformers does, and project."""
    states = hidden[rows].float()
    states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPS)
    return F.linear(norm_weight * states.to(hidden.dtype), matrix)


def ours(hidden: Tensor, base: Tensor, rows: Tensor, norm_weight: Tensor, matrix: Tensor) -> Tensor:
    """Project as a training step does."""
    norm = {"norm_weight": norm_weight, "eps": EPS, "offset": 0.0}
    return query_projection(hidden, base, rows.shape[1], layers=[(matrix, None)], **norm)[0]
