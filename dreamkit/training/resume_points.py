"""The resume points of a run: checkpoints between two steps, with the state from which the run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dreamkit.storage.folders import remove_folder, restore_replaced
from dreamkit.storage.writing import writing
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import STATE, state_errors

RESUME_POINTS: Final = "checkpoints"  # folder of the folders `step-N`
MAX_RESUME_POINTS: Final = 2


def resume_point(out: Path, step: int) -> Path:
    """Return the folder of the resume point after `step`."""
    return out / RESUME_POINTS / f"step-{step}"


def resume_points(out: Path) -> list[Path]:
    """Return the resume points of a run, oldest first."""
    points = (out / RESUME_POINTS).glob("step-*")
    return sorted(
        (point for point in points if point.name[5:].isdecimal()), key=lambda point: int(point.name[5:])
    )


def restore_resume_points(out: Path) -> None:
    """Give resume points their names back that a killed process was about to replace.

    Raises:
        OutputError: the folder cannot be written.
    """
    for replaced in (out / RESUME_POINTS).glob(".step-*.replaced"):
        with writing(replaced):
            restore_replaced(replaced.with_name(replaced.name[1:].removesuffix(".replaced")))


def remove_resume_points(out: Path) -> None:
    """Remove all resume points of a run but the last ones, and what an interrupted run left unfinished."""
    unfinished = (out / RESUME_POINTS).glob(".step-*")
    for old in [*resume_points(out)[:-MAX_RESUME_POINTS], *unfinished]:
        remove_folder(old)


def load_random_state(point: Path) -> None:
    """Set the generators of this process to their state in a resume point of as many processes.

    Raises:
        CheckpointError: the state is damaged.
    """
    with state_errors(point):
        if (state := RandomState.read(point / STATE)) is not None:
            state.restore()
