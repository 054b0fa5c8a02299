"""Runs that are killed at random times continue bit by bit; `.ci/full kills` kills more of them."""

from __future__ import annotations

import subprocess
import sys

import kills


def test_runs_that_are_killed_ten_times_are_those_of_no_kill() -> None:
    # a process of its own, whose forks are runs
    process = subprocess.run(
        [sys.executable, kills.__file__, "--kills", "10"], text=True, capture_output=True, timeout=600
    )
    assert process.returncode == 0, process.stderr[-8000:]
    assert process.stdout.startswith("10 kills of runs of 1 process")
