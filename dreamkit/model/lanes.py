"""The rows of all documents of an engine, in lanes by what comes next: one token, more of them, or an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dreamkit.model.document_rows import Rows
from dreamkit.model.writer import Writer

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel

Kind = Literal["running", "filling", "waiting"]


class Lanes:
    """Rows that are fed together: those with one next token in one call, and those with more in another one.

    So a long prompt is read in pieces beside the others, and no padding stays in their rows. Documents that wait for an
    image keep their rows. Rows that the language model cannot move between caches are fed alone.
    """

    def __init__(self, model: DreamModel, prefill_tokens: int) -> None:
        self.model = model
        self.prefill_tokens = prefill_tokens
        self._lanes: list[Rows] = []
        self._ends: dict[int, Tensor] = {}  # last hidden states of documents whose inputs are fed in part

    def add(self, number: int, length: int = 0, cache: Any = None) -> None:
        """Add a document, of which `cache` has the first `length` positions in its only row."""
        rows = Rows(self.model, [number])
        if length:
            rows.cache, rows.positions = cache, {number: length}
        self._lanes.append(rows)

    def copy(self, number: int) -> Any | None:
        """Return a new KV cache with all positions of a document; None if the language model cannot copy it."""
        (lane,) = [lane for lane in self._lanes if number in lane.positions]
        return self.model.language_model.copy_rows(lane.cache, [lane.numbers.index(number)])

    def continue_rows(self, parents: Mapping[int, Sequence[int]]) -> set[int]:
        """Replace the rows of documents by copies: for each new row, of an earlier one of the same document.

        Return the documents whose rows the language model cannot copy; these stay as they are.
        """
        failed: set[int] = set()
        for lane in self._lanes:
            changed = {
                number: rows
                for number, rows in parents.items()
                if [*rows] != [*range(lane.numbers.count(number))] and number in lane.positions
            }
            if changed and not lane.continue_rows(changed):
                failed |= changed.keys()
        return failed

    def restart(self, number: int, rows: int) -> None:
        """Give a document this many rows without positions, in place of its rows."""
        self.drop(number)
        self._lanes.append(Rows(self.model, [number] * rows))

    def drop(self, number: int) -> None:
        """Drop a document. Its keys and values go with the next `advance`."""
        for lane in self._lanes:
            if number in lane.positions:
                lane.drop(number)
        self._lanes = [lane for lane in self._lanes if lane.positions]
        self._ends.pop(number, None)

    def advance(self, writers: Mapping[int, Writer]) -> dict[int, Tensor]:
        """Feed the next inputs of documents, and take them from their writers.

        Return the last hidden states, before the final norm, of documents whose inputs are used up: as many as there
        are dream queries, or fewer. Like the inputs, they are (t, D), or (R, t, D) of R rows.
        """
        self._arrange(writers)
        used_up: dict[int, Tensor] = {}
        filling = sum(writer.inputs.shape[-2] > 1 for writer in writers.values())
        most = max(1, self.prefill_tokens // max(1, filling))
        if not self.model.language_model.spec.cache:  # each piece would be computed with all before it
            most = self.model.language_model.spec.max_length
        for lane in self._lanes:
            rows = {number: writers[number] for number in lane.positions if writers[number].inputs.shape[-2]}
            if not rows:
                continue
            # the dream states of an image are computed at once: with LongRoPE, a later token may change earlier ones
            pieces = {
                number: writer.inputs if writer.drawing else writer.inputs[..., :most, :]
                for number, writer in rows.items()
            }
            for number, hidden_tD in lane.feed(pieces).items():
                writer, length = rows[number], hidden_tD.shape[-2]
                writer.position += length
                writer.inputs = writer.inputs[..., length:, :]
                if (earlier := self._ends.pop(number, None)) is not None:
                    hidden_tD = torch.cat([earlier, hidden_tD], dim=-2)
                end = hidden_tD[..., -len(self.model.dream_queries) :, :]
                (self._ends if writer.inputs.shape[-2] else used_up)[number] = end
        return used_up

    @property
    def has_known_bytes(self) -> bool:
        """True if the bytes of the language model's cache are known, or it has none."""
        language_model = self.model.language_model
        return (
            not language_model.spec.cache
            or language_model.cache_bytes(language_model.new_cache()) is not None
        )

    def cache_bytes(self) -> int | None:
        """Return the bytes of all caches; None if they are unknown."""
        language_model, total = self.model.language_model, 0
        for lane in self._lanes:
            each = 0 if lane.cache is None else language_model.cache_bytes(lane.cache)
            if each is None:
                return None
            total += each
        return total

    def _arrange(self, writers: Mapping[int, Writer]) -> None:
        """Divide lanes whose documents differ in what comes next, and join lanes whose documents do not."""
        lanes: list[Rows] = []
        firsts: dict[tuple[Kind, bool], Rows] = {}
        for lane in chain.from_iterable(self._divided(each, writers) for each in self._lanes):
            (kind, *others) = {_kind(writers[number]) for number in lane.positions}
            if others or kind == "waiting":
                lanes.append(lane)
            elif (kind, lane.is_new) not in firsts or not firsts[kind, lane.is_new].join(lane):
                firsts.setdefault((kind, lane.is_new), lane)
                lanes.append(lane)
        self._lanes = lanes

    def _divided(self, lane: Rows, writers: Mapping[int, Writer]) -> list[Rows]:
        """Return a lane for each kind of its documents, or the lane itself if it cannot be divided."""
        lane.compact()
        if lane.is_fixed:
            return [lane]
        numbers: dict[Kind, list[int]] = defaultdict(list)
        for number in lane.positions:
            numbers[_kind(writers[number])].append(number)
        parts = [lane]
        for kind in [*numbers][1:]:
            part = lane.split(numbers[kind])
            parts += [] if part is None else [part]
        return parts


def _kind(writer: Writer) -> Kind:
    length = writer.inputs.shape[-2]
    if length > 1:
        return "filling"
    return "running" if length else "waiting"
