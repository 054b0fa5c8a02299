"""Input embeddings of the rows of a stage-II batch: words, images that are read, dream queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots, look_up
from dreamkit.kernels.bench.figures import Work
from dreamkit.kernels.bench.gradients import EAGER, directions
from dreamkit.kernels.bench.harness import Bench, Case, measured
from dreamkit.kernels.bench.measurements import Record

TABLE = "assembling embeddings"
ITEMSIZE = 2  # bfloat16


@dataclass(frozen=True)
class Geometry:
    """B rows of T tokens, N images read as V tokens, K blocks of Q queries, width D, a vocabulary, and added tokens."""

    rows: int = 4
    tokens: int = 2048
    images: int = 12
    vision_tokens: int = 256
    blocks: int = 12
    queries: int = 64
    dim: int = 4096
    vocabulary: int = 32000
    added: int = 5

    def inputs(self, device: torch.device) -> tuple[Any, ...]:
        """Arguments of `assemble_embeddings`, the images and blocks evenly over the rows."""
        length = self.rows * self.tokens
        ids = torch.randint(self.vocabulary + self.added, (length,), device=device)
        every = torch.arange(self.images, device=device) * (length // self.images)
        vision_rows = every[:, None] + torch.arange(self.vision_tokens, device=device)
        every = torch.arange(self.blocks, device=device) * (length // self.blocks) + self.vision_tokens
        query_rows = every[:, None] + torch.arange(self.queries, device=device)
        slots = torch.full((length,), -1, device=device)
        taken = torch.arange(vision_rows.numel(), device=device)
        slots[vision_rows.flatten()] = taken
        slots[query_rows.flatten()] = len(taken) + torch.arange(self.queries, device=device).repeat(
            self.blocks
        )
        shape = (self.rows, self.tokens)
        added_rows = torch.full((self.vocabulary + self.added,), -1, device=device)
        added_rows[self.vocabulary :] = torch.arange(self.added, device=device)

        def table(*size: int) -> Tensor:
            return torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True)

        vision = table(self.images, self.vision_tokens, self.dim)
        queries, weight = table(self.queries, self.dim), table(self.vocabulary, self.dim)
        words = (weight, table(self.added, self.dim), added_rows, None, None)
        return ids.view(shape), slots.view(shape), vision_rows, vision, query_rows, queries, *words

    def work(self, is_backward: bool) -> Work:
        """Each row is read and written once; so is the gradient of it, and the tables' gradients are written."""
        rows = self.rows * self.tokens
        moved = 2 * self.reads
        if is_backward:
            vision = self.images * self.vision_tokens
            moved += ITEMSIZE * (rows + vision + self.queries + self.vocabulary + self.added) * self.dim
        return Work(moved, 0)

    @property
    def reads(self) -> int:
        """Bytes of the rows."""
        return ITEMSIZE * self.rows * self.tokens * self.dim


def _eager(ids: Tensor, plan: Tensor, *slots_and_tables: Any) -> Tensor:
    slots, tables = slots_and_tables[:4], slots_and_tables[4:]
    return fill_slots(look_up(ids, *tables), *slots)


CANDIDATES: dict[str, Callable[..., Tensor]] = {EAGER: _eager, "ours": assemble_embeddings}
LEARNED = (3, 5, 6, 7)  # vision tokens, queries and the tables of words


def section(bench: Bench) -> Iterator[Record]:
    """Forward, and forward and backward."""
    geometry = Geometry(2, 64, 2, 8, 2, 4, 32, 100) if bench.small else Geometry()
    for name in ("forward", "forward and backward"):
        is_backward = "backward" in name
        yield from measured(
            bench,
            Case(
                TABLE,
                name,
                lambda: geometry.inputs(bench.device),
                directions(CANDIDATES, LEARNED, is_backward, bench.small),
                work=geometry.work(is_backward),
                graphs=True,
                reads=geometry.reads,
            ),
        )
