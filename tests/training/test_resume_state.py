"""The trainer's state in a resume point is read as written, or refused with the point's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from dreamkit.errors import CheckpointError
from dreamkit.training.resume_state import check_state, processes


@pytest.fixture
def point(tmp_path: Path) -> Path:
    """Return the state of a resume point after two steps."""
    point = tmp_path / "step-2"
    (point / "trainer").mkdir(parents=True)
    state = TrainerState()
    state.global_step = 2
    state.save_to_json(str(point / "trainer/trainer_state.json"))
    (point / "trainer/processes.json").write_text("3")
    (point / "trainer/optimizer.pt").touch()
    return point


def test_a_state_is_accepted_as_written(point: Path) -> None:
    check_state(point)
    assert processes(point) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"global_step": 3},
        {"global_step": 10**12},
        {"global_step": "2"},
        {"log_history": 1},
        {"total_flos": "x"},
    ],
)
def test_another_step_or_type_is_refused(point: Path, changes: dict[str, Any]) -> None:
    file = point / "trainer/trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    message = r"step-2: the state of its run cannot be read: .*; remove this resume point"
    with pytest.raises(CheckpointError, match=message) as caught:
        check_state(point)
    assert next(iter(changes)) in str(caught.value)


@pytest.mark.parametrize("text", ["", "0", "true", "[1]", "[" * 10**5, "\xff"])
def test_an_invalid_count_of_processes_is_refused(point: Path, text: str) -> None:
    (point / "trainer/processes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="step-2: the state of its run cannot be read"):
        processes(point)
