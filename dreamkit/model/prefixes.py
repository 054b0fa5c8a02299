"""Computed beginnings of documents, from which others that begin in the same way start."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch

from dreamkit.errors import describe_error
from dreamkit.model.lanes import Lanes
from dreamkit.model.writer import Writer
from dreamkit.parts.language import LanguageModel

LEAST: Final = 32  # positions: it is quicker to compute fewer than to wait for them and copy them
MOST: Final = 256  # kept documents: each is compared with each document that begins or ends

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Kept:
    """The beginning of a document that has ended: names of its positions, and a KV cache of one row."""

    names: list[int]
    cache: Any
    bytes: int


class Prefixes:
    """Beginnings of the documents in the batch, and of at most `MOST` ended ones within a budget of bytes.

    Names of positions are those of `InputMaker.names`. The beginnings that were used least recently are dropped first.
    """

    def __init__(
        self, language_model: LanguageModel, lanes: Lanes, writers: Mapping[int, Writer], budget_bytes: int
    ) -> None:
        self.language_model = language_model
        self.budget_bytes = budget_bytes
        self._lanes, self._writers = lanes, writers
        self._kept: list[_Kept] = []  # the one that was used last at the end
        # of a waiting document: the number of one in the batch, and the length of the beginning
        self._awaited: WeakKeyDictionary[Writer, tuple[int, int]] = WeakKeyDictionary()
        self._can_copy = language_model.spec.cache
        self._can_cut = language_model.spec.cache_padding  # recurrent states cannot be cut

    @property
    def bytes(self) -> int:
        """The memory of the beginnings of ended documents."""
        return sum(each.bytes for each in self._kept)

    def awaits(self, writer: Writer) -> bool:
        """Return True if a document in the batch is just reading the longest beginning of this one's prompt."""
        number, length = self._awaited.pop(writer, (-1, 0))
        if number not in self._writers:
            # a document that writes may read its prompt again, but not for others
            readers = [other for other in self._batch() if self._can_cut and not other.tokens]
            prompts = [(other.names[: other.length], other) for other in readers]
            length, reader = _most_alike(writer.names[:-1], prompts, LEAST - 1)
            if reader is None or length <= self._kept_one(writer)[0]:
                return False
            number = reader.number
        if self._writers[number].position >= length:
            return False
        self._awaited[writer] = number, length
        return True

    def begin(self, writer: Writer) -> tuple[int, Any]:
        """Return the length and a KV cache of the longest computed beginning; 0 and None without one.

        The last position of the prompt is never part of it, because its hidden state predicts the next token.
        """
        length, kept = self._kept_one(writer)
        computed = [(other.names[: other.position], other) for other in self._batch()]
        longer, other = self._most_alike(writer, computed, length)
        if other is not None:
            copied = self._lanes.copy(other.number)
            self._can_copy = copied is not None
            return self._cut(copied, other.position, longer)
        if kept is not None:
            self._kept.remove(kept)
            self._kept.append(kept)
            return self._cut(self.language_model.copy_rows(kept.cache, [0]), len(kept.names), length)
        return 0, None

    def keep(self, writer: Writer) -> None:
        """Keep the positions of a document that ends, in place of those that it continues.

        If the device has no memory for them, all that is kept is dropped. After another error, nothing is kept.
        """
        names = writer.names[: writer.position]
        if not self._can_copy or not self.budget_bytes or len(names) < LEAST:
            return
        if any(_begins(each.names, names) for each in self._kept):
            return
        try:
            cache = self._lanes.copy(writer.number)
            size = None if cache is None else self.language_model.cache_bytes(cache)
        except torch.OutOfMemoryError:
            self._kept = []
            return
        except Exception as error:  # the code of a plug-in may fail in any way; no document depends on this
            self._kept, self.budget_bytes = [], 0
            log.warning("cannot keep the KV caches of documents that have ended: %s", describe_error(error))
            return
        if size is None:  # as for all documents
            self.budget_bytes = 0
        if size is None or size > self.budget_bytes:
            return
        self._kept = [each for each in self._kept if not _begins(names, each.names)]
        self._kept.append(_Kept(names, cache, size))
        while self.bytes > self.budget_bytes or len(self._kept) > MOST:
            del self._kept[0]

    def _batch(self) -> Iterable[Writer]:
        return self._writers.values() if self._can_copy else ()

    def _kept_one(self, writer: Writer) -> tuple[int, _Kept | None]:
        """Return the number of first positions that `writer` has in common with an ended document, and this document.

        The number is the greatest one. Without one of at least `LEAST`, return `LEAST` - 1 and None.
        """
        return self._most_alike(writer, [(each.names, each) for each in self._kept], LEAST - 1)

    def _most_alike(
        self, writer: Writer, others: Iterable[tuple[list[int], T]], more_than: int
    ) -> tuple[int, T | None]:
        """Return the result of `_most_alike` for the prompt of `writer`, among positions that can be used."""
        names = writer.names[:-1]
        usable = [pair for pair in others if self._can_cut or names[: len(pair[0])] == pair[0]]
        return _most_alike(names, usable, more_than)

    def _cut(self, cache: Any | None, positions: int, length: int) -> tuple[int, Any]:
        """Return the first positions of a cache of one row; 0 and None if the language model cannot cut it."""
        if cache is None or (length < positions and not self.language_model.truncate_rows(cache, [length])):
            return 0, None
        return length, cache


def _most_alike(
    names: Sequence[int], others: Iterable[tuple[Sequence[int], T]], more_than: int
) -> tuple[int, T | None]:
    """Return the greatest common length of `names` and one of `others`, and that one.

    Return `more_than` and None if no common length is more than that.
    """
    found = None
    for each, value in others:
        length = common_length(names, each, more_than)
        if length > more_than:
            more_than, found = length, value
    return more_than, found


def _begins(whole: list[int], beginning: list[int]) -> bool:
    """Return True if `whole` begins with `beginning`, which has at least one name."""
    length = len(beginning)
    # most documents already differ in one name, so that few long slices are made
    return whole[length - 1 : length] == beginning[-1:] and whole[:length] == beginning


def common_length(one: Sequence[int], other: Sequence[int], more_than: int = 0) -> int:
    """Return the number of equal names at the start of two lists; 0 may stand for one that is not `more_than` that."""
    if one[: more_than + 1] != other[: more_than + 1]:
        return 0
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
