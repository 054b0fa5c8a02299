"""The KV cache of a decoder of transformers, whose rows come and go.

B rows, N rows to keep, T tokens of this call, S slots so far, W slots to keep, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

EMPTY = -1  # the segment of an empty slot


class _Slots(NamedTuple):
    """One tensor of the cache: the attribute `name` of `owner`, its dimension of slots, its value in an empty slot."""

    owner: Any
    name: str
    dim: int
    empty: int = 0

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor

    def padded(self, width: int) -> Tensor:
        """Return the tensor with empty slots at the end, `width` slots in all."""
        more = width - self.tensor.shape[self.dim]
        return F.pad(self.tensor, (*[0, 0] * (-1 - self.dim), 0, more), value=self.empty)


@dataclass
class TokenCache:
    """Keys and values of every layer, and the position and segment of every slot (segment -1: empty).

    `layers` keeps every token: the library's windowed caches would count empty slots, so the masks apply windows.
    Without `padding`, no slot of a row may be empty. `has_empty_slots`, and `has_segments` beside 0, are False if
    there are none.
    `embeds_BSD` has the inputs of all slots if the model's keys change when a document passes a length, else None.
    """

    layers: DynamicCache = field(default_factory=DynamicCache)
    position_ids_BS: Tensor | None = None
    segment_ids_BS: Tensor | None = None
    embeds_BSD: Tensor | None = None
    padding: bool = True
    has_empty_slots: bool = False
    has_segments: bool = False

    def extend(self, position_ids_BT: Tensor, segment_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Add T slots; return the positions and segments (B, S) of all slots. It waits for the device."""
        if segment_ids_BT.is_meta or segment_ids_BT.any():
            self.has_empty_slots |= segment_ids_BT.is_meta or bool((segment_ids_BT == EMPTY).any())
            self.has_segments |= segment_ids_BT.is_meta or bool((segment_ids_BT > 0).any())
        self.position_ids_BS = _joined(self.position_ids_BS, position_ids_BT)
        self.segment_ids_BS = _joined(self.segment_ids_BS, segment_ids_BT)
        return self.position_ids_BS, self.segment_ids_BS

    def extend_embeds(self, embeds_BTD: Tensor) -> Tensor:
        """Add the inputs of T slots; return those of all slots."""
        self.embeds_BSD = _joined(self.embeds_BSD, embeds_BTD)
        return self.embeds_BSD

    @property
    def has_slots(self) -> bool:
        """Flag: each layer has the keys and values of each slot; recurrent and windowed layers do not."""
        return all(type(layer) is DynamicLayer for layer in self.layers.layers)

    @property
    def can_select(self) -> bool:
        """Flag: its rows can be dropped, ordered and copied without empty slots in layers that do not know them."""
        return self.has_slots or not self.padding

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors of a cache that has slots."""
        return sum(slots.tensor.nbytes for slots in self._slots())

    @property
    def is_full(self) -> bool:
        """Flag: each slot has a token of the one document in its row."""
        return not (self.has_empty_slots or self.has_segments)

    def lengths(self) -> list[int]:
        """Return the number of tokens in each row; it waits for the device."""
        return [] if self.segment_ids_BS is None else (self.segment_ids_BS != EMPTY).sum(1).tolist()

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and as many slots as the longest of them has tokens."""
        if self.segment_ids_BS is None:
            return
        rows_N = torch.tensor(rows, dtype=torch.long, device=self.segment_ids_BS.device)
        if not self.has_slots:
            layers: Any = self.layers
            layers.reorder_cache(rows_N)
            for slots in self._ids():
                setattr(slots.owner, slots.name, slots.tensor[rows_N])
            return
        lengths = self.lengths()
        width = max((lengths[row] for row in rows), default=0)
        self.has_empty_slots = any(lengths[row] < width for row in rows)
        if width == self.segment_ids_BS.shape[1]:
            for slots in self._slots():
                setattr(slots.owner, slots.name, slots.tensor[rows_N])
            return
        # the tokens of each row first, in their order
        is_empty_NS = (self.segment_ids_BS[rows_N] == EMPTY).long()
        slots_NW = is_empty_NS.argsort(dim=1, stable=True)[:, :width]
        for slots in self._slots():
            kept = slots.tensor.movedim(slots.dim, 1)[rows_N[:, None], slots_NW]
            setattr(slots.owner, slots.name, kept.movedim(1, slots.dim))

    def copied(self, rows: Sequence[int]) -> TokenCache:
        """Return a new cache with these rows, in this order, and as many slots as the longest of them has tokens."""
        if not self.has_slots:
            new = copy.deepcopy(self)
            new.select(rows)
            return new
        layers = copy.copy(self.layers)
        layers.layers = [copy.copy(layer) for layer in layers.layers]
        new = replace(self, layers=layers)
        new.select(rows)  # each tensor is a new one
        return new

    def join(self, other: TokenCache) -> None:
        """Append the rows of `other`, and keep as many slots as the longest row has tokens."""
        for each in (self, other):
            each._drop_empty_slots()
        if other.segment_ids_BS is None:
            return
        if self.segment_ids_BS is None:
            vars(self).update(vars(other))
            return
        widths = self.segment_ids_BS.shape[1], other.segment_ids_BS.shape[1]
        self.has_empty_slots |= other.has_empty_slots or widths[0] != widths[1]
        self.has_segments |= other.has_segments
        width = max(widths)
        for slots, others in zip([*self._slots()], [*other._slots()], strict=True):
            setattr(slots.owner, slots.name, torch.cat([slots.padded(width), others.padded(width)]))

    def truncate(self, lengths: Sequence[int]) -> None:
        """Keep the first tokens of each row, as many as `lengths` has for it."""
        if self.segment_ids_BS is None:
            return
        filled_BS = self.segment_ids_BS != EMPTY
        lengths_B1 = torch.tensor(lengths, device=filled_BS.device)[:, None]
        self.segment_ids_BS = self.segment_ids_BS.masked_fill(filled_BS.cumsum(1) > lengths_B1, EMPTY)
        self.has_empty_slots = True  # perhaps; `select` knows
        self._drop_empty_slots()

    def _drop_empty_slots(self) -> None:
        """Keep as many slots as the longest row has tokens."""
        if self.segment_ids_BS is not None and max(self.lengths(), default=0) < self.segment_ids_BS.shape[1]:
            self.select(range(len(self.segment_ids_BS)))

    def _slots(self) -> Iterator[_Slots]:
        """Yield the tensors that have slots."""
        layers: list[Any] = self.layers.layers
        for layer in layers:
            if layer.is_initialized:
                yield _Slots(layer, "keys", -2)
                yield _Slots(layer, "values", -2)
        yield from self._ids()

    def _ids(self) -> Iterator[_Slots]:
        """Yield the tensors beside the layers."""
        ids = [_Slots(self, "position_ids_BS", -1), _Slots(self, "segment_ids_BS", -1, EMPTY)]
        for slots in (*ids, _Slots(self, "embeds_BSD", -2)):
            if getattr(self, slots.name) is not None:
                yield slots


def _joined(earlier: Tensor | None, new: Tensor) -> Tensor:
    return new if earlier is None else torch.cat([earlier, new], dim=1)
