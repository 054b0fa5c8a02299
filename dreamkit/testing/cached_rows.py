"""The rows of a KV cache under test: what they hold, and what a part must compute next in them.

B rows, T tokens of a call, D width. A call is the numbers of tokens that the rows get; fewer leave empty slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import describe_value
from dreamkit.testing.expect import expect_close, expect_finite, expect_shape, expect_true
from dreamkit.testing.subject_kinds import LanguageSubject, positions


class Documents:
    """Random documents and their hidden states in one pass, in two equal rows."""

    def __init__(self, subject: LanguageSubject, count: int, length: int, seed: int) -> None:
        self.subject = subject
        self.embeds = [*subject.embeds(count, length, seed)]
        self.expected = [self._one_pass(embeds_TD) for embeds_TD in self.embeds]

    def branch(self, document: int, length: int) -> int:
        """Add a document that begins with this many tokens of another one; return its number."""
        own = self.embeds[document]
        self.embeds.append(torch.cat([own[:length], own.flip(0)[: len(own) - length] + 1]))
        self.expected.append(self._one_pass(self.embeds[-1]))
        return len(self.embeds) - 1

    def _one_pass(self, embeds_TD: Tensor) -> Tensor:
        inputs = {"embeds": embeds_TD.expand(2, -1, -1), **positions([len(embeds_TD)], 2)}
        with torch.no_grad():
            return self.subject.call(self.subject.part, inputs)[0]


class CachedRows:
    """The rows of a KV cache, each with the first tokens of a document."""

    def __init__(self, texts: Documents, documents: Iterable[int] = ()) -> None:
        self.texts, self.subject, self.part = texts, texts.subject, texts.subject.part
        self.documents = [*documents]
        self.lengths = [0] * len(self.documents)
        self.cache = self.part.new_cache()
        self.steps: list[str] = []
        self.owner = ""  # of the cache, in `steps`
        self.hidden = torch.empty(0)  # (B, T, D) of the last call

    def run(self, *calls: Sequence[int]) -> None:
        """Compute the next tokens of each row; fail unless their hidden states are those of one pass."""
        for call in calls:
            starts, hidden = self.lengths, self.fill(call)
            for row, (start, tokens) in enumerate(zip(starts, call, strict=True)):
                whole = self.texts.expected[self.documents[row]][start : start + tokens]
                name = f"hidden of row {row}"
                expect_close(hidden[row, :tokens], whole, f"{name} with a cache", f"{name} in one pass")

    def fill(self, *calls: Sequence[int]) -> Tensor:
        """Compute the next tokens of each row; return the hidden states (B, T, D) of the last call."""
        for call in calls:
            tokens = [*call]
            self._record(f"forward (tokens of each row: {tokens})")
            self.hidden = self._forward(tokens)
            self.lengths = [sum(pair) for pair in zip(self.lengths, tokens, strict=True)]
        return self.hidden

    def _forward(self, call: Sequence[int]) -> Tensor:
        shape = len(call), max(call), self.part.spec.dim
        embeds = torch.ones(shape)
        position_ids = torch.zeros(shape[:2], dtype=torch.long)
        segment_ids = torch.full_like(position_ids, -1)
        for row, (tokens, start) in enumerate(zip(call, self.lengths, strict=True)):
            embeds[row, :tokens] = self.texts.embeds[self.documents[row]][start : start + tokens]
            position_ids[row, :tokens] = torch.arange(start, start + tokens)
            segment_ids[row, :tokens] = 0
        with torch.no_grad():
            hidden = self.part(embeds, position_ids, segment_ids, self.cache)
        expect_finite(expect_shape(hidden, "hidden", "(B, T, D)", shape), "hidden")
        return hidden

    def select(self, rows: Sequence[int]) -> bool:
        if can := self._changes("select_rows", [*rows]):
            self.documents = [self.documents[row] for row in rows]
            self.lengths = [self.lengths[row] for row in rows]
        return can

    def join(self, other: CachedRows) -> bool:
        if can := self._changes("join_rows", other.cache, shown="other"):
            self.documents += other.documents
            self.lengths += other.lengths
        return can

    def truncate(self, lengths: Sequence[int]) -> bool:
        if can := self._changes("truncate_rows", [*lengths]):
            self.lengths = [min(pair) for pair in zip(self.lengths, lengths, strict=True)]
        return can

    def copy(self, rows: Sequence[int]) -> CachedRows | None:
        """Return copies of these rows in a cache of their own, whose steps follow the ones here; None if refused."""
        self._record(f"copy_rows(cache, {[*rows]})")
        cache = self.part.copy_rows(self.cache, [*rows])
        if cache is None:
            return None
        copied = CachedRows(self.texts, [self.documents[row] for row in rows])
        copied.lengths = [self.lengths[row] for row in rows]
        copied.cache, copied.steps, copied.owner = cache, self.steps, " with the copy"
        return copied

    def _changes(self, method: str, argument: Any, shown: str = "") -> bool:
        """Return the answer of a method that changes the rows; fail unless it is a bool."""
        self._record(f"{method}(cache, {shown or argument})")
        answer = getattr(self.part, method)(self.cache, argument)
        expect_true(isinstance(answer, bool), describe_value(answer), f"True or False from {method}")
        return bool(answer)

    def _record(self, step: str) -> None:
        self.steps.append(step + self.owner)
        self.subject.call_text = ", ".join(self.steps)
