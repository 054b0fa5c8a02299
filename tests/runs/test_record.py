"""The record of a run: strict, whole, and without the values of environment variables."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dreamkit.errors import TrainingError
from dreamkit.runs.record import RunRecord, installed_versions, new_start, read_record

RECORD = RunRecord(1, 0, 30, 4, 1, 1, "CPU", {"python": "3.11"}, [new_start(0)], "", {"train": {"steps": 30}})
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "which a newer dreamkit wrote"),
    ({"format": 0}, "format: expected at least 1, got 0"),
    ({"steps": 0}, "steps: expected at least 1, got 0"),
    ({"steps": "30"}, "steps: expected an integer, got"),
    ({"seed": 10**30}, "seed: expected an integer of at most 64 bits"),
    ({"device": None}, "device: expected a string, got null"),
    ({"more\x1b": 1}, r"missing or unknown: more\x1b"),
    ({"starts": []}, "starts: expected at least one start, got none"),
    (
        {"starts": [{"time": "2026-01-01T00:00:00", "step": 0}]},
        "starts.0.time: expected a time with its zone",
    ),
    ({"starts": [{"time": "now", "step": 0}]}, "starts.0.time: expected a time with its zone, got 'now'"),
    ({"starts": [new_start(-1)]}, "starts.0.step: expected at least 0, got -1"),
    ({"versions": {"torch": 2}}, "versions.torch: expected a string, got 2"),
]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    RECORD.write(tmp_path)
    assert read_record(tmp_path) == RECORD
    again = RunRecord(**{**asdict(RECORD), "starts": [new_start(7)], "processes": 2})
    both = again.after(RECORD)
    assert [start["step"] for start in both.starts] == [0, 7] and both.processes == 2


@pytest.mark.parametrize(("change", "expected"), WRONG)
def test_a_wrong_value_is_an_error_with_the_name_of_the_file(
    change: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(asdict(RECORD) | change))
    with pytest.raises(TrainingError) as caught:
        read_record(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/run.json: ") and expected in message
    assert message.endswith("restore or remove this file; the next start of the run writes it anew")


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | st.just(b"[" * 10**5))
def test_any_other_bytes_are_an_error_with_the_name_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_bytes(data)
    with pytest.raises(TrainingError, match=r"run\.json: "):
        read_record(folder)


def test_a_pipe_or_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(TrainingError, match="expected a file, got a named pipe"):
        read_record(tmp_path)


def test_a_path_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    record = RunRecord(**{**asdict(RECORD), "recipe": {"init": os.fsdecode(b"/a\xff")}})
    record.write(tmp_path)
    assert read_record(tmp_path) == record


def test_versions_are_those_of_python_libraries_and_components() -> None:
    versions = installed_versions([("dreamkit-own", "7")])
    assert {"python", "dreamkit-core", "torch", "transformers"} <= versions.keys()
    assert versions["dreamkit-own"] == "7"
