"""Calls in threads, for reads that wait for a disk or network. They overlap, in each process that reads data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

THREADS: Final = 16  # of a process: as many reads of a disk or requests of a bucket at once

Result = TypeVar("Result")


@contextmanager
def in_threads(calls: Sequence[Callable[[], Result]]) -> Iterator[list[Callable[[], Result]]]:
    """Start `calls` in threads of this process; yield a function for each that waits for its result or error.

    None of the calls runs after the block.
    """
    futures = [_pool(os.getpid()).submit(call) for call in calls]
    try:
        yield [future.result for future in futures]
    finally:
        wait([future for future in futures if not future.cancel()])


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process. A forked process has none of its parent's, and starts its own."""
    return ThreadPoolExecutor(THREADS, "dreamkit-read")
