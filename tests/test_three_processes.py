"""Three processes, whose shares of the global batch differ, train like one.

One launch of `three_processes.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

import json
from pathlib import Path

import pytest

import layouts
import three_processes
from dreamkit.training.run_log import TIMES
from processes import run_in
from three_processes import AGAIN, AGAIN_FOLDER, RUNS, MeasuredRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    run_in(3, three_processes.__file__, folder)
    return folder


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_three_processes_compute_the_losses_and_the_gradient_of_one(
    folder: Path, tmp_path: Path, run: MeasuredRun
) -> None:
    """The one process packs documents into rows and runs one forward pass, where the recipe lets it."""
    run.train(tmp_path)
    layouts.assert_same_run(folder / run.name, tmp_path, run.precision)


def test_three_processes_of_one_layout_are_bitwise_identical(folder: Path) -> None:
    first, second = folder / AGAIN.name, folder / AGAIN_FOLDER
    logs = [
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (first, second)
    ]
    entries, others = ([{k: e[k] for k in e if k not in TIMES} for e in log] for log in logs)
    assert entries == others and len(entries) == layouts.STEPS_OF[AGAIN.precision]
    files = sorted((first / "checkpoint").glob("*.safetensors"))
    assert files
    for file in [*files, first / layouts.FIRST_GRADIENT]:
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file.name
