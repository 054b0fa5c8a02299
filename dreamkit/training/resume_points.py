"""The resume points of a run: checkpoints between two steps, with the state from which the run continues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import set_seed

from dreamkit.data.seeds import stream_seed
from dreamkit.distributed import rank, world_size
from dreamkit.errors import CheckpointError
from dreamkit.runs.run_paths import RESUME_POINTS, resume_points, step_of
from dreamkit.storage.folders import remove_folder, restore_replaced
from dreamkit.storage.writing import writing
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import STATE, RunState, state_errors


def continue_hint(out: Path) -> str:
    """Return how to continue a run that has ended within a step."""
    last = next(reversed(resume_points(out)), None)
    if last is None:
        return "there is no resume point (train.save_every sets the steps between them)"
    return f"the last resume point is {last}; continue with --resume"


def restore_resume_points(out: Path) -> None:
    """Give resume points their names back that a killed process was about to replace.

    Raises:
        OutputError: the folder cannot be written.
    """
    for replaced in (out / RESUME_POINTS).glob(".step-*.replaced"):
        with writing(replaced):
            restore_replaced(replaced.with_name(replaced.name[1:].removesuffix(".replaced")))


def remove_resume_points(out: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove the resume points of a run but the last ones (0: keep all), and what an interrupted run left unfinished.

    Those whose step is a multiple of `keep_every` stay.
    """
    old = resume_points(out)[:-keep_last] if keep_last else []
    unfinished = (out / RESUME_POINTS).glob(".step-*")
    for folder in [
        *(point for point in old if keep_every is None or step_of(point) % keep_every),
        *unfinished,
    ]:
        remove_folder(folder)


def load_random_state(point: Path, state: RunState, seed: int) -> None:
    """Set the generators of this process to their state in a resume point with this state of its run.

    A point of another number of processes has none for this one: its generators then begin anew, from `seed`.

    Raises:
        CheckpointError: the state is damaged.
    """
    if state.processes != world_size():
        set_seed(stream_seed(seed, state.step, f"process {rank()}") % 2**32)
        return
    with state_errors(point):
        if (random_state := RandomState.read(point / STATE)) is not None:
            random_state.restore()


@contextmanager
def naming_older(checkpoint: Path, older: Sequence[Path]) -> Iterator[None]:
    """Name the last one of the resume points before `checkpoint` in an error about that one."""
    try:
        yield
    except CheckpointError as error:
        if not older:
            raise
        raise CheckpointError(
            f"{error}\nIf you cannot restore {checkpoint}, remove it; --resume then continues from {older[-1]}"
        ) from error
