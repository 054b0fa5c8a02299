"""The memory of this process that is not mapped from files, on Linux."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from pathlib import Path
from typing import Self

SECONDS = 0.002  # between two samples


class Peak:
    """The largest `RssAnon` of this process while the block runs, sampled by a thread, and at its end.

    On a busy machine, the thread may take few samples: what the block keeps should live until its end.

    Attributes:
        before: bytes at the begin of the block.
        most: bytes at the peak.
    """

    def __enter__(self) -> Self:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.before = self.most = anonymous()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.most = max(self.most, anonymous())
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(SECONDS):
            self.most = max(self.most, anonymous())


def anonymous() -> int:
    """Return the bytes of memory of this process that are not mapped from files."""
    status = Path("/proc/self/status").read_text()
    (kibibytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kibibytes) * 1024
