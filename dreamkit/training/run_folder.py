"""The folder of a run, which one training writes at a time, with one or more processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.distributed import barrier, gathered, is_main, world_size
from dreamkit.errors import OutputError, TrainingError
from dreamkit.runs.run_paths import CHECKPOINT, LOG, RESUME_POINTS
from dreamkit.storage.folders import in_use_reason
from dreamkit.storage.locks import exclusive
from dreamkit.storage.writing import writing
from dreamkit.training.resume_points import restore_resume_points

# Seconds until a file must be visible on all machines: they keep lists of files for a while.
PATIENCE: Final = 30.0


@contextmanager
def exclusive_run(out: Path) -> Iterator[None]:
    """Lock the folder of a run for all processes of this training. Every process must enter the block.

    Raises:
        OutputError: another command is writing `out`, it cannot be written, or the machines do not share it. All
            processes raise it.
    """
    with ExitStack() as stack:
        if world_size() == 1:
            stack.enter_context(exclusive(out))
            restore_resume_points(out)
        else:
            _lock_for_all(out, stack)
        yield


def _lock_for_all(out: Path, stack: ExitStack) -> None:
    """Let the first process lock the folder `out`; check that the others see what it writes there."""
    problem = mark = None
    with ExitStack() as until_seen:
        if is_main():
            try:
                place = stack.enter_context(exclusive(out))
                restore_resume_points(out)  # before any process looks for them
                mark = until_seen.enter_context(_marked(place, out))
            except OutputError as error:
                problem = str(error)
        problem, mark = gathered((problem, mark))[0]
        if problem is not None:
            raise OutputError(problem)
        assert mark is not None, "the first process has a mark or a problem"
        _require_shared(out, mark)
    barrier()  # the mark is removed


@contextmanager
def _marked(place: Path, out: Path) -> Iterator[str]:
    """Write an empty file for the run in `out` into the folder `place`, and yield its name.

    Raises:
        OutputError: it cannot be written.
    """
    mark = place / f".{out.name}.{token_hex(8)}"
    with writing(mark):
        mark.touch()
    try:
        yield mark.name
    finally:
        with suppress(OSError):
            mark.unlink()


def _require_shared(out: Path, mark: str) -> None:
    """Check that every process sees the file `mark` of the first one, in `out` or beside it.

    Raises:
        OutputError: one does not. All processes raise it.
    """
    host = socket.gethostname()
    (first, _), *others = gathered((host, _is_visible(out, mark)))
    blind = [host for host, is_visible in others if not is_visible]
    if blind:
        raise OutputError(
            f"expected the folder of the run, {out}, on a file system that all machines share, with the same --out "
            f"for each; {blind[0]} does not see what the first process on {first} wrote there"
        )


def _is_visible(out: Path, mark: str) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        for place in (out.parent, out):
            with suppress(OSError):  # such as a missing folder
                if mark in os.listdir(place):
                    return True
        if time.monotonic() > end:
            return False
        time.sleep(0.5)


def is_finished(out: Path) -> bool:
    """Return True if the run in `out` has written its checkpoint."""
    return (out / CHECKPOINT / Manifest.FILE).is_file()


def require_usable(out: Path, points: Sequence[Path], resume: bool) -> None:
    """Check that a run can be resumed from the `points` in `out`, or that a new run can take the folder.

    Raises:
        TrainingError: it cannot.
    """
    if resume and not points and is_finished(out):
        raise TrainingError(
            f"the run in {out} has ended, and left no resume point to lengthen it from (train.save_every writes some); "
            f"start a new run from its weights with --out NEW init={out / CHECKPOINT}"
        )
    if resume and not points:
        raise TrainingError(
            f"no resume point {RESUME_POINTS}/step-N in {out}; train without --resume into a new folder "
            "(train.save_every sets the steps between resume points)"
        )
    if not resume and (reason := in_use_reason(out)):
        here = (
            "its run is finished; lengthen it with --resume and more train.steps, or "
            if is_finished(out)
            else "continue its run with --resume or "
            if points
            else "its run left no resume point (train.save_every writes some), so remove it or "
            if (out / LOG).is_file()
            else ""
        )
        raise TrainingError(f"{out} {reason}; {here}pass a new folder with --out")
