"""The trainer's state in a resume point, checked before a run takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from dreamkit.data.fingerprint import fingerprint_problem
from dreamkit.errors import CheckpointError, describe_error, excerpt
from dreamkit.storage.json_files import read_json

STATE: Final = "trainer"  # folder of the trainer's state in a resume point
PROCESSES: Final = "processes.json"  # file in that folder: number of processes of the run
DATA: Final = "data.json"  # file in that folder: fingerprints of the data sets
MAX_NUMBER: Final = 1e300  # in the state; NaN is not below it
MAX_COUNT: Final = 2**53  # of documents in it
INTERVAL: Final = "interval.json"  # file in that folder: losses since the last line of the log
COUNTS: Final = ("skipped", "bad", "cut")  # in the same file: documents since the start of the run
LIMIT: Final = (
    "limit_step",
    "limit_skipped",
    "limit_bad",
)  # in it, too: where the limit of bad documents begins


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


def fingerprints(point: Path) -> list[dict[str, str]]:
    """Return the fingerprints of the data of the run that wrote a resume point; older resume points have none.

    Raises:
        CheckpointError: their file cannot be read or holds another value.
    """
    file = point / STATE / DATA
    if not file.is_file():
        return []
    with state_errors(point):
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, list):
            raise ValueError(f"{DATA}: expected a list of fingerprints, got {excerpt(json.dumps(values))}")
        for problem in filter(None, map(fingerprint_problem, values)):
            raise ValueError(f"{DATA}: {problem}")
        return values


def read_interval(point: Path) -> dict[str, Any] | None:
    """Return the losses since the last line of the log; None if the resume point is older than these.

    They come with the numbers of documents that were skipped, bad and cut, and where the limit of the bad ones begins:
    0 in an older resume point.

    Raises:
        CheckpointError: their file cannot be read or holds another value.
    """
    file = point / STATE / INTERVAL
    if not file.is_file():
        return None
    with state_errors(point):
        values = read_json(file)
        numbers = [values.get("last_logged"), values.get("loss"), *_list(values.get("sums"))]
        are_numbers = all(type(number) in (int, float) and abs(number) < MAX_NUMBER for number in numbers)
        if len(numbers) != 6 or not are_numbers or numbers[0] not in range(finished_steps(point) + 1):
            raise ValueError(
                f"{INTERVAL}: expected a step, a loss and four sums, got {excerpt(json.dumps(values))}"
            )
        numbers = [values.setdefault(name, 0) for name in COUNTS]
        if any(type(number) is not int or not 0 <= number < MAX_COUNT for number in numbers):
            got = excerpt(json.dumps(values))
            raise ValueError(
                f"{INTERVAL}: expected numbers of documents that are skipped, bad and cut, got {got}"
            )
        start = [values.setdefault(name, 0) for name in LIMIT]
        greatest = (finished_steps(point), values["skipped"], values["bad"])
        if any(
            type(number) is not int or not 0 <= number <= most
            for number, most in zip(start, greatest, strict=True)
        ):
            got = excerpt(json.dumps(values))
            raise ValueError(
                f"{INTERVAL}: expected the step and numbers where the limit of bad documents begins, got {got}"
            )
        return values


def finished_steps(point: Path) -> int:
    """Return the number of finished steps of a resume point `step-N`."""
    return int(point.name.removeprefix("step-"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def check_state(point: Path) -> None:
    """Check the file that the trainer reads without a check: the types of its values, and its step.

    Raises:
        CheckpointError: the file cannot be read, a value has another type, or the step is not that of `point`.
    """
    with state_errors(point):
        values = read_json(point / STATE / TRAINER_STATE_NAME)
        known = vars(TrainerState())
        if unknown := sorted(values.keys() - known.keys()):
            raise ValueError(f"{TRAINER_STATE_NAME}: unknown key {excerpt(unknown[0])}")
        for name, usual in known.items():
            value = values.get(name, usual)
            kinds = (int, float) if type(usual) in (int, float) else (type(usual),)
            if usual is not None and value is not None and type(value) not in kinds:
                got = excerpt(json.dumps(value))
                raise ValueError(f"{TRAINER_STATE_NAME}: {name}: expected {type(usual).__name__}, got {got}")
        if values.get("global_step") != finished_steps(point):
            raise ValueError(
                f"{TRAINER_STATE_NAME}: global_step: got {excerpt(repr(values.get('global_step')))}"
            )
        if values["global_step"] and not (point / STATE / OPTIMIZER_NAME).is_file():
            raise ValueError(f"missing {OPTIMIZER_NAME}")


@contextmanager
def state_errors(point: Path) -> Iterator[None]:
    """Raise any error as one about the state in a resume point.

    Raises:
        CheckpointError: any error.
    """
    try:
        yield
    except Exception as error:
        raise CheckpointError(
            f"{point}: the state of its run cannot be read: {describe_error(error)}; remove this resume point, "
            f"--resume then continues from the one before it, or start a new run with init={point}"
        ) from error
