"""The folder of a demo, which has all of its files at the end, and none of them after an error or interrupt."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dreamkit import TrainingError

UNFINISHED = ".unfinished-demo"  # a locked file in the folder of a demo; a killed one leaves it


@contextmanager
def unfinished(out: Path, names: Sequence[str]) -> Iterator[None]:
    """Take the folder `out` for the demo in the block, which writes `names`. If it raises, remove these.

    Raises:
        TrainingError: `out` is in use.
    """
    if (out / UNFINISHED).is_file():
        with (out / UNFINISHED).open() as file:
            lock(file, out)
            remove_written(out, names)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = "is not empty" if out.is_dir() else "is a file"
        raise TrainingError(f"{out} {reason}; remove it, or pass another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    with (out / UNFINISHED).open("w") as file:
        lock(file, out)
        try:
            yield
        except BaseException as error:
            remove_written(out, names)
            error.__notes__ = ["the demo was removed; start it again"]  # in place of notes about its runs
            raise
        (out / UNFINISHED).unlink()


def lock(file: IO[str], out: Path) -> None:
    """Lock a file until it is closed or the process ends.

    Raises:
        TrainingError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TrainingError(f"{out}: another demo is writing it; pass another folder with --out") from error


def remove_written(out: Path, names: Sequence[str]) -> None:
    """Remove what a demo writes to `out`, and `out` if nothing else is there."""
    for path in (*(out / name for name in names), out / UNFINISHED):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()
