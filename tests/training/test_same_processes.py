"""Processes on machines that differ are refused together; a program may have set up their group, and train in a thread.

One launch of `hosted_runs.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import hosted_runs
from processes import run_in_two

HOST = r"on \S+"
MESSAGES = {
    "packages": rf"expected the same packages .*:\n  torch: [\d.+a-z]+ {HOST}, 1\.0 {HOST} \(rank 1\)",
    "settings": rf"expected the same settings .*:\n  train\.learning_rate: 0\.25 {HOST}, 0\.5 {HOST} \(rank 1\)",
    "prompts": rf"expected the same settings .*:\n  train\.prompts\[0\]: 'a+\.\.\. {HOST}, 'a+\.\.\. {HOST} \(rank 1\)",
    "resume": rf"expected the same settings .*:\n  resume: False {HOST}, True {HOST} \(rank 1\)",
    "data": rf"expected the same data .*:\n(  data\.0: .+ {HOST}, .+ {HOST} \(rank 1\)\n?)+",
    "held_out": rf"expected the same data .*:\n  held_out\.0: .+ {HOST}, .+ {HOST} \(rank 1\)(\n.*)*",
    "folder": r"expected the folder of the run, .*, on a file system that all machines share, .* does not see .*",
    "time": r"a process of the run did not end .* within 30 minutes; .* DREAMKIT_TIMEOUT",
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosted")
    run_in_two(hosted_runs.__file__, folder)
    return folder


@pytest.mark.parametrize("fault", hosted_runs.FAULTS)
def test_machines_that_differ_are_refused_by_all_processes(two_processes: Path, fault: str) -> None:
    first, second = ((two_processes / f"{fault}.{rank}.txt").read_text() for rank in range(2))
    assert re.fullmatch(MESSAGES[fault], first), first
    if fault == "time":  # the late process meets nobody
        return
    assert second.replace("/1/run", "/0/run") == first
    files = [path for path in (two_processes / fault).rglob("*") if path.is_file()]
    assert [path.name for path in files if path.name != ".run.lock"] == []


def test_a_program_s_own_group_and_thread_train_as_one_process_does(
    two_processes: Path, tmp_path: Path
) -> None:
    hosted_runs.train(tmp_path / "alone")
    alone, hosted = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "alone", two_processes / "hosted")
    )
    assert len(alone) == len(hosted) == hosted_runs.STEPS
    for one, two in zip(alone, hosted, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert (two_processes / "hosted/checkpoint").is_dir()
