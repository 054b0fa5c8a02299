"""The trainer's state in a resume point, checked before a run takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from dreamkit.errors import CheckpointError, DreamkitError, describe_error, excerpt
from dreamkit.storage.json_files import read_json

STATE: Final = "trainer"  # folder of the trainer's state in a resume point
PROCESSES: Final = "processes.json"  # file in that folder: number of processes of the run


def processes(point: Path) -> int:
    """Return the number of processes of the run that wrote a resume point.

    Raises:
        CheckpointError: its file cannot be read or holds another value.
    """
    with state_errors(point):
        count = json.loads((point / STATE / PROCESSES).read_text())
        if type(count) is not int or count < 1:
            raise ValueError(f"{PROCESSES}: expected a count, got {excerpt(json.dumps(count))}")
        return count


def check_state(point: Path) -> None:
    """Check the file that the trainer reads without a check: the types of its values, and its step.

    Raises:
        CheckpointError: the file cannot be read, a value has another type, or the step is not that of `point`.
    """
    with state_errors(point):
        values = read_json(point / STATE / TRAINER_STATE_NAME)
        for name, usual in vars(TrainerState()).items():
            value = values.get(name, usual)
            kinds = (int, float) if type(usual) in (int, float) else (type(usual),)
            if usual is not None and value is not None and type(value) not in kinds:
                got = excerpt(json.dumps(value))
                raise ValueError(f"{TRAINER_STATE_NAME}: {name}: expected {type(usual).__name__}, got {got}")
        if values.get("global_step") != int(point.name.removeprefix("step-")):
            raise ValueError(
                f"{TRAINER_STATE_NAME}: global_step: got {excerpt(repr(values.get('global_step')))}"
            )


@contextmanager
def state_errors(point: Path) -> Iterator[None]:
    """Raise any error as one about the state in a resume point.

    Raises:
        CheckpointError: any error.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, DreamkitError) else describe_error(error)
        raise CheckpointError(
            f"{point}: the state of its run cannot be read: {reason}; remove this resume point, --resume then "
            f"continues from the one before it, or start a new run with init={point}"
        ) from error
