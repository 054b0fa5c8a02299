"""The state of a run in a resume point is read as written, also that of earlier releases, or refused with its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamkit.errors import CheckpointError
from dreamkit.training.resume_state import DocumentCounts, Interval, RunState, read_state

STATE = RunState(
    step=2,
    processes=3,
    global_batch=12,
    interval=Interval(1, (0.5, 2.0, 20.5, 1.0, 1.0)),
    documents=DocumentCounts(skipped=7, bad=5, cut=1, limit_step=1, limit_skipped=4, limit_bad=2),
    norms=(0.25, 1.0),
)
# as release 0.1, and as the releases until `state.json`
OF_0_1 = {"trainer_state.json": {"global_step": 2, "log_history": [], "max_steps": 4}, "processes.json": 3}
EARLIER = OF_0_1 | {
    "interval.json": {
        **{"last_logged": 1, "loss": 20.5, "sums": [0.5, 2.0, 1.0, 1.0]},
        **{"skipped": 7, "bad": 5, "cut": 1, "limit_step": 1, "limit_skipped": 4, "limit_bad": 2},
    },
    "data.json": [],
}


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """Return a resume point after two steps, without its state."""
    point = tmp_path / "step-2"
    (point / "trainer").mkdir(parents=True)
    (point / "trainer/optimizer.pt").touch()
    return point


def write(point: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (point / "trainer" / name).write_text(json.dumps(content))


def test_a_state_is_read_as_written(point: Path) -> None:
    STATE.write(point / "trainer")
    assert read_state(point) == STATE


def test_the_states_of_earlier_releases_are_read(point: Path) -> None:
    write(point, OF_0_1)
    assert read_state(point) == RunState(2, 3, None, Interval(2), DocumentCounts())
    write(point, EARLIER)
    assert read_state(point) == replace(STATE, global_batch=None, norms=())


def test_a_state_without_the_flag_of_preemption_is_that_of_a_run_that_was_not_preempted(point: Path) -> None:
    STATE.write(point / "trainer")
    file = point / "trainer/state.json"
    values = json.loads(file.read_text())
    assert values.pop("preempted") is False
    file.write_text(json.dumps(values))
    assert read_state(point) == STATE


def refuse(point: Path, name: str) -> None:
    message = r"step-2: the state of its run cannot be read: .*; remove this resume point"
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state(point)
    assert name in str(caught.value)


VALUES: list[tuple[str, Any]] = [
    *(("step", value) for value in (3, 10**90, "2", True, None)),
    *(("processes", value) for value in (0, -1, 1.0, True, "3", 10**90)),
    *(("global_batch", value) for value in (0, -1, 2.0, "4", 10**90)),
    *(("interval", value) for value in ([], {}, {"start": 1}, {"start": 0, "sums": [0.0] * 5, "more": 1})),
    *(("interval.start", value) for value in (3, -1, 10**90, "1")),
    *(("interval.sums", value) for value in ([0.0] * 4, [1e308] * 5, [float("nan")] * 5, ["0"] * 5, 1)),
    *(("documents", value) for value in ([], {"skipped": 1})),
    *(("documents.skipped", value) for value in (-1, "2", 10**90)),
    *(("documents.bad", value) for value in (None, 1.5)),
    *(("documents.limit_step", value) for value in (3, -1)),
    *(("documents.limit_skipped", value) for value in (8, "1")),
    *(("documents.limit_bad", value) for value in (6, "0")),
    *(("data", value) for value in ({}, 1, [1], [{"records": 3}])),
    *(("preempted", value) for value in (None, 1, "SIGTERM")),
    *(("norms", value) for value in ({}, [-1.0], ["1"], [float("nan")], [1e308], [1.0] * 101)),
    ("unknown", 1),
]


@pytest.mark.parametrize(("key", "value"), VALUES, ids=lambda each: str(each)[:30])
def test_another_value_is_refused(point: Path, key: str, value: Any) -> None:
    STATE.write(point / "trainer")
    file = point / "trainer/state.json"
    values = json.loads(file.read_text())
    *sections, name = key.split(".")
    section = values
    for each in sections:
        section = section[each]
    section[name] = value
    file.write_text(json.dumps(values))
    refuse(point, "state.json")


@pytest.mark.parametrize("text", ["", "0", "true", "[1]", "[" * 10**5, "\xff"])
@pytest.mark.parametrize("name", ["state.json", "trainer_state.json", "processes.json"])
def test_a_file_of_something_else_is_refused(point: Path, name: str, text: str) -> None:
    write(point, EARLIER)
    (point / "trainer" / name).write_bytes(text.encode("latin-1"))
    refuse(point, "")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("trainer_state.json", {"global_step": 3}),
        ("trainer_state.json", {"global_step": "2"}),
        ("interval.json", {"loss": float("nan")}),
        ("interval.json", {"last_logged": 10**90}),
        ("interval.json", {"sums": [1e308] * 4}),
        ("interval.json", {"sums": [1.0]}),
        ("interval.json", {"sums": None}),
        ("interval.json", {"skipped": -1}),
        ("interval.json", {"limit_bad": "0"}),
    ],
)
def test_another_value_of_an_earlier_release_is_refused(
    point: Path, name: str, change: dict[str, Any]
) -> None:
    write(point, EARLIER | {name: EARLIER[name] | change})  # type: ignore[operator]
    refuse(point, "earlier release")


def test_a_state_without_the_optimizer_is_refused(point: Path) -> None:
    STATE.write(point / "trainer")
    (point / "trainer/optimizer.pt").unlink()
    refuse(point, "missing optimizer-00001-of-00003.safetensors")
