"""Keyed permutations, in integer arithmetic alone: no release of a library can change an order."""

from __future__ import annotations

from collections.abc import MutableSequence
from math import isqrt
from typing import Any, Final

WORD: Final = 2**64 - 1
GOLDEN: Final = 0x9E3779B97F4A7C15  # 2**64 / the golden ratio: the step of SplitMix64
SMALL: Final = 4096  # items of a permutation that is shuffled in a table
ROUNDS: Final = 10  # of the Feistel network of a larger one; an even number


def mixed(word: int) -> int:
    """Return a word of 64 bits that looks random, a bijection of `word`: the finalizer of SplitMix64.

    Sources: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
    D. Stafford, "Better bit mixing", 2011, for the constants (Mix13).
    """
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def stream_key(*numbers: int) -> int:
    """Return the key (64 bits) of the stream with these numbers; each number counts modulo 2**64."""
    key = 0
    for number in numbers:
        key = mixed((key ^ (number & WORD)) + GOLDEN & WORD)
    return key


def shuffle_in_place(items: MutableSequence[Any], key: int) -> None:
    """Shuffle `items` by Fisher and Yates, with SplitMix64 from state `key` on as random numbers."""
    for last in range(len(items) - 1, 0, -1):
        key = key + GOLDEN & WORD
        other = mixed(key) * (last + 1) >> 64
        items[last], items[other] = items[other], items[last]


class Permutation:
    """A random permutation of the numbers below `size`, in constant memory: `Permutation(size, key)[position]`.

    Up to `SMALL` numbers are shuffled in a table: a Feistel network of so few is far from random. More numbers become
    pairs (left, right), with about sqrt(size) values on each side, and a Feistel network permutes these. At most 2 in a
    hundred pairs are no number below `size`. Such a pair is permuted again until it becomes one ("cycle walking").

    Source: J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 4 and 5.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self._table: list[int] | None = None
        if size <= SMALL:
            self._table = list(range(size))
            shuffle_in_place(self._table, key)
            return
        lefts = isqrt(size - 1) + 1
        self._rights = -(-size // lefts)
        # The key of each round and the number of values of the side that it changes. The sides alternate.
        self._rounds = [
            (mixed(key + (number + 1) * GOLDEN & WORD), (lefts, self._rights)[number % 2])
            for number in range(ROUNDS)
        ]

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(f"expected a position from 0 to {self.size - 1}, got {position}")
        if self._table is not None:
            return self._table[position]
        while True:
            left, right = divmod(position, self._rights)
            for key, values in self._rounds:
                left, right = right, (left + mixed(right + key & WORD)) % values
            position = left * self._rights + right
            if position < self.size:
                return position
