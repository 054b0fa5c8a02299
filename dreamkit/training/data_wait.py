"""The time that a run waits for its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

NOTABLE = 0.05  # share of the time


class DataWait:
    """The share of the steps' time in which a process waits for batches and its device has nothing to do.

    The first batch does not count: workers start for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device_work = torch.cuda.Event() if device.type == "cuda" else None
        self._begin: float | None = None  # after the first batch
        self._interval = 0.0  # begin of the interval
        self._waits = [0.0, 0.0]  # seconds since the begin, and in the interval

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block, in which the batches of a step are read, also by the other processes."""
        if self._device_work is not None:
            self._device_work.record()  # after the steps before
        start = time.perf_counter()
        yield
        now = time.perf_counter()
        if self._begin is None:
            self._begin = self._interval = now
        elif self._device_work is None or self._device_work.query():
            self._waits = [waited + now - start for waited in self._waits]

    def read(self) -> float:
        """Return the share since the last call, or since the first batch, from 0 to 1."""
        now = time.perf_counter()
        share = self._waits[1] / (now - self._interval)
        self._interval, self._waits[1] = now, 0.0
        return share

    def advice(self, workers: int) -> str | None:
        """Return a line for a run that waited for a notable share of its time; None for others."""
        if self._begin is None:
            return None
        share = self._waits[0] / (time.perf_counter() - self._begin)
        if share <= NOTABLE:
            return None
        return (
            f"{share:.0%} of the time was spent waiting for data; raise train.workers (now {workers}), set "
            "train.decode_margin if JPEG images are large, or compute latents and features before, with `dreamkit "
            "cache`"
        )
