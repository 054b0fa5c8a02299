"""The folder of a demo, which has all of its files at the end, and none of them after an error or interrupt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dreamkit import TrainingError

UNFINISHED = ".unfinished-demo"  # file in the folder of a demo until its end; a killed one leaves it


@contextmanager
def unfinished(out: Path, names: Sequence[str]) -> Iterator[None]:
    """Take the folder `out` for the demo in the block, which writes `names`. If it raises, remove these.

    The caller has the exclusive right to write `out`.

    Raises:
        TrainingError: `out` is in use.
    """
    if (out / UNFINISHED).is_file():
        remove_written(out, names)
    if out.exists() and (not out.is_dir() or any(out.glob("[!.]*"))):
        reason = "is not empty" if out.is_dir() else "is a file"
        raise TrainingError(f"{out} {reason}; remove it, or pass another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()
    try:
        yield
    except BaseException as error:
        remove_written(out, names)
        error.__notes__ = ["the demo was removed; start it again"]  # in place of notes about its runs
        raise
    (out / UNFINISHED).unlink()


def remove_written(out: Path, names: Sequence[str]) -> None:
    """Remove what a demo writes to `out`, and `out` if nothing else is there."""
    for path in (*(out / name for name in names), out / UNFINISHED):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()
