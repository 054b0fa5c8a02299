"""The resume points of a run: checkpoints between two steps, with the state from which the run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.distributed import is_main
from dreamkit.errors import CheckpointError
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import remove_folder, restore_replaced
from dreamkit.storage.tensor_files import read_pickle
from dreamkit.storage.writing import writing
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import OPTIMIZER, STATE, RunState, state_errors

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


def save_resume_point(
    out: Path,
    state: RunState,
    model: DreamModel,
    optimizer: Optimizer,
    random_state: RandomState,
    registry: Registry | None,
) -> None:
    """Write a resume point into the folder of a run; remove all but the last ones. Every process must call this.

    Raises:
        OutputError: the folder cannot be written.
    """

    def write(point: Path) -> None:
        folder = point / STATE
        with writing(folder):
            folder.mkdir(exist_ok=True)
            _write_optimizer(folder / OPTIMIZER, model, optimizer)
            random_state.save(folder)
            if is_main():
                state.write(folder)

    save_checkpoint(model, resume_point(out, state.step), registry=registry, beside=write)
    if is_main():
        unfinished = (out / RESUME_POINTS).glob(".step-*")  # of an interrupted run
        for old in [*resume_points(out)[:-MAX_RESUME_POINTS], *unfinished]:
            remove_folder(old)


def load_optimizer(point: Path, model: DreamModel, optimizer: Optimizer) -> None:
    """Set the state of the optimizer to that in a resume point.

    Raises:
        CheckpointError: it is damaged or does not fit.
    """
    file = point / STATE / OPTIMIZER
    with state_errors(point):
        if file.is_file():  # not before the first step
            options = StateDictOptions(full_state_dict=True)
            names = {parameter: name for name, parameter in model.named_parameters()}
            groups = [
                {**group, "params": [names[parameter] for parameter in group["params"]]}
                for group in optimizer.param_groups
            ]
            # settings and groups are those of this run
            state = {**read_pickle(file, CheckpointError), "param_groups": groups}
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=options)


def load_random_state(point: Path) -> None:
    """Set the generators of this process to their state in a resume point of as many processes.

    Raises:
        CheckpointError: the state is damaged.
    """
    with state_errors(point):
        if (state := RandomState.read(point / STATE)) is not None:
            state.restore()


def _write_optimizer(file: Path, model: DreamModel, optimizer: Optimizer) -> None:
    """Write the optimizer's state of all processes as one file."""
    if not optimizer.state:  # before the first step; torch would make one to have a state
        return
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if is_main():
        with writing(file), file.open("wb") as opened:  # a path would hide the error of the operating system
            torch.save(state, opened)
