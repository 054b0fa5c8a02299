"""Blocks that processes share: each takes the next one that nobody has, and one of them shows the progress of all.

Files alone connect the processes: one that is slow, idle or dead keeps no other one waiting within the work.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from dreamkit.cache.unfinished import Stage, Unfinished
from dreamkit.distributed import barrier, is_main, rank, world_size
from dreamkit.storage.writing import writing

INTERVAL: Final = 0.5  # seconds between two reports of a process
WAIT: Final = 0.1  # seconds between two looks at those of the others


class SharedBlocks:
    """The blocks of one stage of the work. All processes make this object with the same arguments but `show`.

    Args:
        work: the folder, which all processes see.
        stage: name of the stage.
        blocks: number of its blocks.
        show: function that the main process calls with the units that all processes have done.
    """

    def __init__(self, work: Unfinished, stage: Stage, blocks: int, show: Callable[[int], None]) -> None:
        self.work, self.stage, self.blocks, self.show = work, stage, blocks, show
        self.done = 0
        self._next_report = 0.0
        self._others: dict[int, tuple[int, bool]] = {
            other: (0, False) for other in range(world_size()) if other != rank()
        }
        self._report(is_over=False)

    def taken(self) -> Iterator[int]:
        """Return the blocks that this process takes, one by one in their order.

        Raises:
            OutputError: a block cannot be marked as taken.
        """
        return filter(self._take, range(self.blocks))

    def advance(self, units: int) -> None:
        """Count units of work that this process has done, or found done.

        Raises:
            OutputError: they cannot be reported to the main process.
        """
        self.done += units
        if time.monotonic() >= self._next_report:
            self._report(is_over=False)

    def finish(self) -> None:
        """Wait until each process has finished the blocks that it took. Every process must call this method."""
        self._report(is_over=True)
        while not all(is_over for _, is_over in self._others.values()):
            time.sleep(WAIT)
            self._look()
        barrier()  # no process removes the reports before all have read them

    def _take(self, number: int) -> bool:
        """Return True if this process is the first one to take the block."""
        with writing(self.work.folder), suppress(FileExistsError):
            os.close(os.open(self._file("taken", number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return True
        return False

    def _report(self, *, is_over: bool) -> None:
        self._next_report = time.monotonic() + INTERVAL
        if self._others:
            path = self._file("progress", rank())
            with writing(self.work.folder):
                partial = path.with_name(f".{path.name}.partial")
                partial.write_text(json.dumps([self.done, is_over]))
                partial.replace(path)
        self._look()

    def _look(self) -> None:
        """Read the reports of the others; show the sum."""
        for other, (_, was_over) in self._others.items():
            if not was_over:
                with suppress(OSError, ValueError):  # not there yet
                    done, is_over = json.loads(self._file("progress", other).read_text())
                    self._others[other] = done, is_over
        if is_main():
            self.show(self.done + sum(done for done, _ in self._others.values()))

    def _file(self, kind: str, number: int) -> Path:
        return self.work.folder / kind / f"{self.stage}-{number:05}"
