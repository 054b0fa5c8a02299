"""The end of a run before its last step, by an error or an interrupt: its last finished step is saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from dreamkit.distributed import total
from dreamkit.errors import DocumentError, OutputError, StorageError
from dreamkit.storage.writing import system_error
from dreamkit.training.resumable import resume_points

if TYPE_CHECKING:
    from dreamkit.training.trainer import DreamTrainer


def add_resume_point(error: BaseException, trainer: DreamTrainer) -> None:
    """Save a resume point of the last finished step; add a note to `error` that names it and how to continue.

    Every process must call this function. It raises nothing.
    """
    if not trainer.has_begun:  # nothing was trained
        return
    # A corrected file is other data than before. What a disk fails to deliver stays as it is.
    is_of_data = isinstance(error, DocumentError) and not isinstance(error, StorageError)
    action = (
        "correct the data, then continue with --resume --changed-data"
        if is_of_data
        else "continue with --resume"
    )
    out, point = Path(str(trainer.args.output_dir)), trainer.point()
    try:
        reason = _unsaved_reason(trainer)
        if reason is None:
            if (not_finite := trainer.monitor.check()) is not None:
                error.add_note(trainer.describe(not_finite))
                trainer.has_diverged = True
                trainer.forget_interval()
            if point not in resume_points(out):
                trainer.save_point()
    except Exception as failure:
        reason = "" if _has_same_reason(error, failure) else str(failure) or repr(failure)
    last = next(reversed(resume_points(out)), None)
    if trainer.has_diverged:  # a resumed run has the same settings
        action = f"start a new run with init={last} and other settings"
    if reason is None:
        error.add_note(f"step {trainer.state.global_step} is saved in {point}; {action}")
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


def _unsaved_reason(trainer: DreamTrainer) -> str | None:
    """Return why the state of the run cannot be a resume point, or None."""
    if not trainer.agreement.is_stopping:
        return "the processes stopped at different places"
    if trainer.random_state is None:
        return "training stopped within an update of the weights"
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    local = [each.to_local() if isinstance(each, DTensor) else each for each in trained]
    if total(torch.stack([(~each.detach().isfinite()).sum() for each in local]).sum()):
        return "the weights are not finite"
    return None
