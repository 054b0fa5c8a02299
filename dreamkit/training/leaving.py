"""The end of a run before its last step, by an error or an interrupt: its last finished step is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreamkit.distributed import gathered, is_main, local, total
from dreamkit.errors import DocumentError, OutputError, StorageError
from dreamkit.interrupts import PREEMPTING, Interrupted
from dreamkit.runs.run_paths import resume_point, resume_points
from dreamkit.storage.writing import system_error
from dreamkit.training.preempted import mark_preempted

if TYPE_CHECKING:
    from dreamkit.training.loop import TrainingLoop


def add_resume_point(error: BaseException, loop: TrainingLoop) -> None:
    """Save a resume point of the last finished step; add a note to `error` that names it and how to continue.

    Every process must call this function. It raises nothing.
    """
    if not loop.progress.has_begun:  # nothing was trained
        return
    # A corrected file is other data than before. What a disk fails to deliver stays as it is.
    is_of_data = isinstance(error, DocumentError) and not isinstance(error, StorageError)
    action = (
        "correct the data, then continue with --resume --changed-data"
        if is_of_data
        else "continue with --resume"
    )
    out = loop.out
    try:
        loop.points.finish() if loop.agreement.is_stopping else loop.points.drop()
    except Exception as failure:  # `error` is the reason to stop
        if not _has_same_reason(error, failure):
            error.add_note(str(failure) or repr(failure))
    try:
        reason = _unsaved_reason(loop)
        if reason is None:
            if (problem := loop.problem()) is not None:
                error.add_note(problem)
            point = resume_point(out, loop.progress.step)
            preempted = isinstance(error, Interrupted) and error.number in PREEMPTING
            # as the first process sees it: it may replace the point at once, and others may see a folder late
            if not gathered(point in resume_points(out))[0]:
                loop.save(preempted=preempted, is_last=True)
            elif preempted and is_main():
                mark_preempted(point, True)
    except Exception as failure:
        reason = "" if _has_same_reason(error, failure) else str(failure) or repr(failure)
    last = next(reversed(resume_points(out)), None)
    if loop.progress.has_diverged:  # a resumed run has the same settings
        action = f"start a new run with init={last} and other settings"
    if reason is None:
        error.add_note(f"step {loop.progress.step} is saved in {point}; {action}")
    else:
        why = f": {reason}" if reason else ""
        more = "" if last is None else f"; the last one is {last}; {action}"
        error.add_note(f"no resume point was saved{why}{more}")


def _has_same_reason(error: BaseException, failure: Exception) -> bool:
    """Return True if one reason, such as a full disk, made two writes fail: both messages differ only in the file.

    `failure` was raised while `error` was handled.
    """
    if not (isinstance(error, OutputError) and isinstance(failure, OutputError)):
        return False
    first, second = system_error(error, None), system_error(failure, error)
    return first is not None and second is not None and first.errno == second.errno is not None


def _unsaved_reason(loop: TrainingLoop) -> str | None:
    """Return why the state of the run cannot be a resume point, or None."""
    if not loop.agreement.is_stopping:
        return "the processes stopped at different places"
    if loop.progress.random_state is None:
        return "training stopped within an update of the weights"
    if total(torch.stack([(~local(each).isfinite()).sum() for each in loop.trained]).sum()):
        return "the weights are not finite"
    return None
