"""The order of the documents of one data set: at random, in blocks of neighbours, or as they are stored."""

from __future__ import annotations

from typing import Final, Protocol

from dreamkit.data.permutation import Permutation, stream_key
from dreamkit.recipe.sections import Shuffle

CHUNK: Final = 256  # neighbouring documents that stay together
WINDOW: Final = 16 * CHUNK  # documents of the chunks that are mixed with each other
_FIRST, _CHUNKS, _WINDOWS = range(3)  # streams of random numbers of an epoch


class Epoch(Protocol):
    """The order of one epoch: a permutation of the numbers below the size of the data set."""

    def __getitem__(self, position: int, /) -> int: ...


class SetOrder:
    """The documents of a data set by turn, over all epochs; each epoch has each document once, in a new order.

    Attributes:
        size: number of documents.
        shuffle: `full` permutes all documents, `blocks` chunks of neighbours, `none` nothing.
        key: key of the permutations.
    """

    def __init__(self, size: int, shuffle: Shuffle, key: int) -> None:
        self.size = size
        self.shuffle = shuffle
        self.key = key
        self._epoch: tuple[int, Epoch] | None = None

    def __getitem__(self, turn: int) -> int:
        number, position = divmod(turn, self.size)
        epoch = self._epoch
        if epoch is None or epoch[0] != number:
            epoch = self._epoch = number, self._order(stream_key(self.key, number))
        return epoch[1][position]

    def _order(self, key: int) -> Epoch:
        if self.shuffle == "full":
            return Permutation(self.size, key)
        return range(self.size) if self.shuffle == "none" else ChunkPermutation(self.size, key)


class ChunkPermutation:
    """A permutation that reads few parts of a data set at a time, in constant memory.

    Neighbours form chunks of `CHUNK` documents, from a random first document on. The chunks are permuted. Each 16 of
    them are a window, in which the documents are permuted. Documents without a whole chunk are in the last window.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self.key = key
        self._first = stream_key(key, _FIRST) % size
        self._chunks = Permutation(size // CHUNK, stream_key(key, _CHUNKS))
        self._window: tuple[int, Permutation] | None = None

    def __getitem__(self, position: int) -> int:
        number, place = divmod(position, WINDOW)
        start = number * WINDOW
        window = self._window
        if window is None or window[0] != number:
            size = min(WINDOW, self.size - start)
            window = self._window = number, Permutation(size, stream_key(self.key, _WINDOWS, number))
        chunk, document = divmod(start + window[1][place], CHUNK)
        if chunk < self._chunks.size:
            chunk = self._chunks[chunk]
        return (self._first + chunk * CHUNK + document) % self.size
