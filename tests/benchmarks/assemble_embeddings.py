"""Input embeddings of a stage-II batch: words, images to read, dream queries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Case, compile_options, with_gradients
from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots, look_up

ROWS, ADDED = 4, 5  # rows of the batch, tokens added to the vocabulary
REAL = (
    2048,
    4096,
    32000,
    12,
    256,
    64,
)  # tokens of a row, width, vocabulary, images, vision tokens, dream queries
SMALL = (64, 32, 100, 2, 8, 4)
TRAINED = (3, 5, 6, 7)  # arguments: vision tokens, queries, the words' table and that of added tokens


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Forward reads and writes each row; backward reads the rows' gradient and writes those of the tables."""
    tokens, dim, vocabulary, images, vision_tokens, queries = sizes = SMALL if small else REAL
    compiled = torch.compile(eager, **compile_options(small))
    candidates = {"eager": eager, "torch.compile": compiled, "ours": assemble_embeddings}
    forward = {name: torch.no_grad()(call) for name, call in candidates.items()}
    moved = 2 * ROWS * tokens
    make_inputs = partial(inputs, device, *sizes)
    yield Case("input assembly, forward", make_inputs, forward, least_bytes=2 * dim * moved)
    backward = {name: with_gradients(call, TRAINED) for name, call in candidates.items()}
    moved += ROWS * tokens + images * vision_tokens + queries + vocabulary + ADDED
    yield Case("input assembly, forward and backward", make_inputs, backward, least_bytes=2 * dim * moved)


def inputs(
    device: torch.device,
    tokens: int,
    dim: int,
    vocabulary: int,
    images: int,
    vision_tokens: int,
    queries: int,
) -> tuple[Any, ...]:
    """Return the arguments of `assemble_embeddings`, with images and query blocks spread evenly over the rows."""
    shape = (ROWS, tokens)
    ids = torch.randint(vocabulary + ADDED, shape, device=device)
    first = torch.arange(images, device=device)[:, None] * (ROWS * tokens // images)
    vision_rows = first + torch.arange(vision_tokens, device=device)
    query_rows = first + vision_tokens + torch.arange(queries, device=device)
    slots = torch.full((ROWS * tokens,), -1, device=device)
    slots[vision_rows] = torch.arange(images * vision_tokens, device=device).view_as(vision_rows)
    slots[query_rows] = images * vision_tokens + torch.arange(queries, device=device)
    added_rows = torch.full((vocabulary + ADDED,), -1, device=device)
    added_rows[vocabulary:] = torch.arange(ADDED, device=device)

    def table(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True)

    slot_arguments = (vision_rows, table(images, vision_tokens, dim), query_rows, table(queries, dim))
    words = (table(vocabulary, dim), table(ADDED, dim), added_rows, None, None)
    return ids, slots.view(shape), *slot_arguments, *words


def eager(ids: Tensor, slots: Tensor, *arguments: Any) -> Tensor:
    """Look up the words, then fill the slots."""
    return fill_slots(look_up(ids, *arguments[4:]), *arguments[:4])
