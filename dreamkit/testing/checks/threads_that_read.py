"""A check of data sets that several threads may read at once."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from dreamkit.testing.check import check
from dreamkit.testing.dataset_subject import DatasetSubject, expect_same_document

THREADS = 16
ROUNDS = 4  # each with a new data set, whose files all threads open at once
SECONDS = 1e-6  # after which another thread continues


def _forbids_threads(subject: DatasetSubject) -> str | None:
    return None if subject.make().is_thread_safe else "the data set does not have is_thread_safe = True"


@check("dataset", unless=_forbids_threads)
def threads(subject: DatasetSubject) -> None:
    """Threads that read at once get the same documents as one thread alone.

    Training reads the documents of a batch in threads, if the data set has `is_thread_safe`.
    """
    numbers = [subject.numbers[n % len(subject.numbers)] for n in range(2 * THREADS)]
    expected = {index: subject.sample(subject.part, index, index) for index in subject.numbers}
    with ThreadPoolExecutor(THREADS) as pool, _often_switched():
        for _ in range(ROUNDS):
            dataset = subject.make()
            subject.call_text = f"dataset.sample in {THREADS} threads"
            calls = [pool.submit(dataset.sample, index, random.Random(index)) for index in numbers]
            for index, call in zip(numbers, calls, strict=True):
                name = f"document {index} in one of {THREADS} threads"
                expect_same_document(call.result(), expected[index], name, "in one thread alone")


@contextmanager
def _often_switched() -> Iterator[None]:
    """Let threads take turns more often than usual, so that the few reads of a check come in many orders."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
