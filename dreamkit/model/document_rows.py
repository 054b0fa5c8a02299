"""Documents that pass through the language model together, each in rows of its own of one KV cache.

Each position of a document passes once: prompt, text, dream queries and the image that is read back share a row. The
documents advance together, each at its own position. A document has several rows if its text is searched with beams,
R in all; they advance together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


class Rows:
    """One pass of some documents through the language model, in calls of any length.

    Without a KV cache, each call gets the documents whole again: if the model has none, or `has_cache` is False.
    Documents are not joined if calls with a cache take no padding.

    Args:
        model: the model.
        numbers: number of the document in each row.
        has_cache: keep keys and values for later calls, if the model can.

    Attributes:
        numbers: number of the document in each row, side by side; None in the row of one that has left.
        positions: number of positions of each document so far.
        is_fixed: flag: the language model could not select rows of the cache.
    """

    def __init__(self, model: DreamModel, numbers: Sequence[int], *, has_cache: bool = True) -> None:
        self.model = model
        self.language_model = model.language_model
        self.numbers: list[int | None] = [*numbers]
        self.positions = dict.fromkeys(numbers, 0)
        has_cache = has_cache and self.language_model.spec.cache
        self.cache: Any = self.language_model.new_cache() if has_cache else None
        self.is_fixed = False
        self.past: dict[int, Tensor] = {}  # embeddings so far (t, D), for a model without a cache

    @property
    def is_new(self) -> bool:
        """True if no document has a position yet: `cache` is empty."""
        return not any(self.positions.values())

    def feed(self, inputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the hidden states, before the final norm, of the next inputs of some documents.

        Both are (t, D), or (R, t, D) for R rows. Rows of other documents get padding.
        """
        if self.cache is None:
            return self._feed_whole(inputs)
        hidden = self._run(self.numbers, inputs, self.positions, is_first=self.is_new)
        for number, embeds in inputs.items():
            self.positions[number] += embeds.shape[-2]
        return hidden

    def _feed_whole(self, inputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        for number, embeds in inputs.items():
            past = self.past.get(number, embeds[..., :0, :])
            past = past.expand(*embeds.shape[:-2], *past.shape[-2:])
            self.past[number] = torch.cat([past, embeds], dim=-2)
            self.positions[number] = self.past[number].shape[-2]
        whole = {number: self.past[number] for number in inputs}
        numbers = [number for number in self.numbers if number in inputs]
        hidden = self._run(numbers, whole, dict.fromkeys(inputs, 0), is_first=True)
        return {number: hidden[number][..., -embeds.shape[-2] :, :] for number, embeds in inputs.items()}

    def _run(
        self,
        numbers: Sequence[int | None],
        inputs: Mapping[int, Tensor],
        starts: Mapping[int, int],
        *,
        is_first: bool,
    ) -> dict[int, Tensor]:
        """Run one call of the language model, with a row for each of `numbers`."""
        width = max(embeds.shape[-2] for embeds in inputs.values())
        some = next(iter(inputs.values()))
        embeds_BTD = some.new_zeros(len(numbers), width, some.shape[-1])
        position_ids = torch.zeros(len(numbers), width, dtype=torch.long)
        segment_ids = torch.full_like(position_ids, -1)
        spans: list[list[tuple[int, int]]] = [[] for _ in numbers]
        rows = _rows_of(numbers)
        for number, embeds in inputs.items():
            start, length = starts[number], embeds.shape[-2]
            embeds_BTD[rows[number], :length] = embeds
            position_ids[rows[number], :length] = torch.arange(start, start + length)
            segment_ids[rows[number], :length] = 0
            spans[rows[number]] = [[(0, length)]] * len(spans[rows[number]])
        # spans are of documents without keys of an earlier call
        named = {"spans": spans} if is_first and self.language_model.spec.document_attention else {}
        hidden_BTD = self.language_model(
            embeds_BTD,
            position_ids.to(some.device),
            segment_ids.to(some.device),
            cache=self.cache,
            **named,
        )
        return {
            number: hidden_BTD[rows[number], : embeds.shape[-2]].reshape(embeds.shape)
            for number, embeds in inputs.items()
        }

    def drop(self, number: int) -> None:
        """Drop a document; `compact` frees its row."""
        self.numbers = [None if each == number else each for each in self.numbers]
        del self.positions[number]
        self.past.pop(number, None)

    def compact(self) -> None:
        """Free the rows of documents that have left. If the language model cannot, they get padding from now on."""
        kept = [row for row, number in enumerate(self.numbers) if number is not None]
        if self.is_fixed or len(kept) == len(self.numbers):
            return
        if self._select(self.cache, kept):
            self.numbers = [self.numbers[row] for row in kept]
        else:
            self.is_fixed = True

    def split(self, numbers: Collection[int]) -> Rows | None:
        """Move these documents, some of all, to rows of their own; return these, or None if that cannot be done."""
        taken = [row for row, number in enumerate(self.numbers) if number in numbers]
        kept = [
            row for row, number in enumerate(self.numbers) if number is not None and number not in numbers
        ]
        other = Rows(self.model, [])
        if self.cache is not None and not self.is_new:
            other.cache = self.language_model.copy_rows(self.cache, taken)
            if other.cache is None or not self._select(self.cache, kept):
                self.is_fixed = True
                return None
        other.numbers = [self.numbers[row] for row in taken]
        self.numbers = [self.numbers[row] for row in kept]
        for number in numbers:
            other.positions[number] = self.positions.pop(number)
            if number in self.past:
                other.past[number] = self.past.pop(number)
        return other

    def continue_rows(self, parents: Mapping[int, Sequence[int]]) -> bool:
        """Replace the rows of some documents by copies: for each new row, of an earlier one of the same document.

        Return False, without a change, if the language model cannot copy rows.
        """
        own = _rows_of(self.numbers)
        kept = [
            row for row, number in enumerate(self.numbers) if number is not None and number not in parents
        ]
        rows = kept + [own[number].start + row for number, each in parents.items() for row in each]
        if self.is_fixed or not self._select(self.cache, rows):
            self.is_fixed = True
            return False
        self.numbers = [self.numbers[row] for row in rows]
        for number in parents.keys() & self.past.keys():
            past = self.past[number]
            self.past[number] = past.reshape(-1, *past.shape[-2:])[[*parents[number]]]
        return True

    def join(self, other: Rows) -> bool:
        """Take over the documents of `other`, which ends; return False, without a change, if that cannot be done."""
        if self.cache is not None:
            if self.is_new != other.is_new or not self.language_model.spec.cache_padding:
                return False
            if not self.is_new and not self.language_model.join_rows(self.cache, other.cache):
                return False
        self.numbers += other.numbers
        self.positions |= other.positions
        self.past |= other.past
        return True

    def _select(self, cache: Any, rows: Sequence[int]) -> bool:
        """Keep rows of a cache; return False if that cannot be done. Without keys there is nothing to do."""
        return cache is None or self.is_new or self.language_model.select_rows(cache, rows)


def _rows_of(numbers: Sequence[int | None]) -> dict[int, slice]:
    """Return the rows of each document, from the number of the document in each row; they lie side by side."""
    rows: dict[int, slice] = {}
    for row, number in enumerate(numbers):
        if number is not None:
            rows[number] = slice(rows[number].start if number in rows else row, row + 1)
    return rows
