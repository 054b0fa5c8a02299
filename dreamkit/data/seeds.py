"""Random numbers of a document in a run, from the run's seed and the document's place alone.

Each use has a stream of its own. So a new use does not change the numbers of the others.
"""

from __future__ import annotations

import hashlib
import random

import torch


def stream_seed(seed: int, place: int, *stream: str | int) -> int:
    """Return the seed, of 64 bits, of one `stream` of random numbers of the document at `place`.

    The seed is a BLAKE2 hash (RFC 7693): the same on every machine, and without a relation to that of another stream.
    """
    key = repr((seed, place, *stream)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def choices(seed: int, place: int) -> random.Random:
    """Return the random choices of a data set about the document at `place`, for `Dataset.sample`."""
    return random.Random(stream_seed(seed, place, "choices"))


def generator(seed: int, place: int, *stream: str | int) -> torch.Generator:
    """Return a generator, on the CPU, of one `stream` of random numbers of the document at `place`."""
    return torch.Generator().manual_seed(stream_seed(seed, place, *stream))
