"""The state of a run in a resume point, `state.json`, checked before a run takes it; also that of earlier releases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_type_hints

from dreamkit.data.fingerprint import fingerprint_problem
from dreamkit.errors import CheckpointError, describe_error, excerpt
from dreamkit.runs.run_paths import STATE, STATE_FILE
from dreamkit.storage.json_files import read_json

EARLIER_OPTIMIZER: Final = "optimizer.pt"  # of earlier releases
MAX_NUMBER: Final = 1e300  # in the state; NaN is not below it
MAX_COUNT: Final = 2**53  # of documents and processes in it


@dataclass(frozen=True)
class Interval:
    """The losses since the last line of the log.

    Attributes:
        start: step of that line.
        sums: sums over all processes and steps: lm, denoising and their weighted sum; numbers of steps with labels and
            with images to draw.
    """

    start: int = 0
    sums: tuple[float, ...] = (0.0,) * 5


@dataclass(frozen=True)
class DocumentCounts:
    """Numbers of documents since the start of the run, in all processes; see `SkippedLog`.

    Attributes:
        skipped: documents that others replaced.
        bad: those of them that are not only too long.
        cut: documents whose end was left out.
        limit_step: step after which the limit of bad documents begins to count.
        limit_skipped: `skipped` at that step.
        limit_bad: `bad` at that step.
    """

    skipped: int = 0
    bad: int = 0
    cut: int = 0
    limit_step: int = 0
    limit_skipped: int = 0
    limit_bad: int = 0


@dataclass(frozen=True)
class RunState:
    """The numbers of a run between two steps.

    Attributes:
        step: number of finished steps.
        processes: number of processes that trained together.
        global_batch: number of documents of an update; None in the states of earlier releases.
        interval: the losses since the last line of the log.
        documents: numbers of documents that were skipped and cut.
        data: fingerprints of the data sets; none in old resume points.
        norms: gradient norms of the last steps, oldest first; see `StepGuard`.
        preempted: flag: the run ended here by a signal of a cluster, and nothing has continued it. A job script reads
            it, because `torchrun` has an exit code of its own.
    """

    step: int
    processes: int
    global_batch: int | None
    interval: Interval
    documents: DocumentCounts
    data: tuple[dict[str, str], ...] = field(default=())
    preempted: bool = False
    norms: tuple[float, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the state into the folder of a run's state."""
        (folder / STATE_FILE).write_text(json.dumps(asdict(self), allow_nan=False), encoding="utf-8")


def read_state(point: Path) -> RunState:
    """Return the state of the run that wrote a resume point.

    Raises:
        CheckpointError: its file cannot be read, a value is impossible, or the step is not that of `point`.
    """
    with state_errors(point):
        folder = point / STATE
        is_earlier = not (folder / STATE_FILE).is_file()
        try:
            values = _earlier_state(folder) if is_earlier else read_json(folder / STATE_FILE)
            state = _state(values, int(point.name.removeprefix("step-")))
        except (KeyError, TypeError, ValueError) as error:
            name = "the files of an earlier release" if is_earlier else STATE_FILE
            raise ValueError(f"{name}: {describe_error(error)}") from error
        if state.step and not (folder / EARLIER_OPTIMIZER).is_file():
            names = (optimizer_file(number, state.processes) for number in range(state.processes))
            if (missing := next((name for name in names if not (folder / name).is_file()), None)) is not None:
                raise ValueError(f"missing {missing}")
        return state


def optimizer_file(number: int, processes: int) -> str:
    """Return the name of the file with the optimizer's state that a process, numbered from 0, wrote."""
    return f"optimizer-{number + 1:05d}-of-{processes:05d}.safetensors"


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


def _state(values: Any, step: int) -> RunState:
    """Return the state with these values.

    Raises:
        ValueError: a value is impossible.
    """
    _require("a section", isinstance(values, dict), values)
    values = {"preempted": False, "norms": [], **values}  # earlier releases had none
    _require_names("state", values, RunState)
    _require(f"step {step}", values["step"] == step and type(values["step"]) is int, values["step"])
    _require_count("processes", values["processes"], least=1)
    if values["global_batch"] is not None:
        _require_count("global_batch", values["global_batch"], least=1)
    interval, documents, data = values["interval"], values["documents"], values["data"]
    _require_names("interval", interval, Interval)
    _require_count("interval.start", interval["start"], most=step)
    sums = interval["sums"]
    are_numbers = isinstance(sums, list) and all(
        type(number) in (int, float) and abs(number) < MAX_NUMBER for number in sums
    )
    _require("five sums of an interval", are_numbers and len(sums) == 5, sums)
    _require_names("documents", documents, DocumentCounts)
    greatest = {"limit_step": step, "limit_skipped": documents["skipped"], "limit_bad": documents["bad"]}
    for name in get_type_hints(DocumentCounts):
        _require_count(f"documents.{name}", documents[name], most=greatest.get(name, MAX_COUNT))
    _require("a list of fingerprints", isinstance(data, list), data)
    for problem in filter(None, map(fingerprint_problem, data)):
        raise ValueError(f"data: {problem}")
    preempted = values["preempted"]
    _require("true or false as preempted", isinstance(preempted, bool), preempted)
    norms = values["norms"]
    are_norms = isinstance(norms, list) and all(
        type(number) in (int, float) and 0 <= number < MAX_NUMBER for number in norms
    )
    _require("at most a hundred gradient norms", are_norms and len(norms) <= 100, norms)
    return RunState(
        step,
        values["processes"],
        values["global_batch"],
        Interval(interval["start"], tuple(map(float, sums))),
        DocumentCounts(**documents),
        tuple(data),
        preempted,
        tuple(map(float, norms)),
    )


def _require(expected: str, is_met: bool, value: Any) -> None:
    if not is_met:
        raise ValueError(f"expected {expected}, got {excerpt(json.dumps(value))}")


def _require_names(name: str, values: Any, section: type) -> None:
    expected = get_type_hints(section)
    is_met = isinstance(values, dict) and values.keys() == expected.keys()
    _require(f"{name} with {', '.join(expected)}", is_met, values)


def _require_count(name: str, value: Any, *, least: int = 0, most: int = MAX_COUNT) -> None:
    is_met = type(value) is int and type(most) is int and least <= value <= most
    _require(f"{name} to be an integer from {least} to {excerpt(json.dumps(most))}", is_met, value)


def _earlier_state(folder: Path) -> dict[str, Any]:
    """Return the values of `state.json` from the files of release 0.1 and those after it, which had one file for each.

    Files that a release did not write count as empty.
    """

    def read(name: str, default: Any) -> Any:
        file = folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else default

    trainer = read_json(folder / "trainer_state.json")
    step = trainer.get("global_step")
    interval = read("interval.json", {"last_logged": step, "loss": 0.0, "sums": [0.0] * 4})
    _require("a section in interval.json", isinstance(interval, dict), interval)
    lm, denoising, *steps = interval["sums"]
    return {
        "step": step,
        "processes": json.loads((folder / "processes.json").read_text()),
        "global_batch": None,
        "interval": {
            "start": interval["last_logged"],
            "sums": [lm, denoising, interval["loss"], *steps],
        },
        "documents": {name: interval.get(name, 0) for name in get_type_hints(DocumentCounts)},
        "data": read("data.json", []),
    }
