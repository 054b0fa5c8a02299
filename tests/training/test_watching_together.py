"""Several processes draw the images and compute the held-out losses of one.

One launch of `watched_runs.py` for each number of processes runs everything; a hang ends at the timeout and fails.
"""

from pathlib import Path

import pytest

import watched_runs
from processes import run_in
from watched_runs import PROMPTS, RUNS, assert_same_view, held_out_log, watched_recipe, watched_run

# Launches of processes that take minutes on two cores.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {processes: tmp_path_factory.mktemp(f"of-{processes}-") for processes in RUNS}
    for name, settings in RUNS[1].items():
        watched_run(folders[1] / name, watched_recipe(**settings))
    for processes in (2, 3):
        run_in(processes, watched_runs.__file__, folders[processes])
    return folders


@pytest.mark.parametrize(
    ("processes", "run"),
    [(2, "float64"), (2, "none"), (2, "offloaded"), (3, "float64"), (3, "one"), (3, "float32")],
)
def test_processes_draw_and_evaluate_as_one(folders: dict[int, Path], processes: int, run: str) -> None:
    """In each pass, another number of processes is idle, and the prompts have other lengths."""
    alone, bound = ("float32", 1e-5) if run == "float32" else ("float64", 1e-10)
    out = folders[processes] / run
    assert_same_view(out, folders[1] / alone, bound)
    assert len([*out.glob("drawings/step-1/*.png")]) == (1 if run == "one" else len(PROMPTS))


def test_processes_in_half_precision_draw_and_evaluate(folders: dict[int, Path]) -> None:
    (entry,), (other,) = (held_out_log(folders[processes] / "half") for processes in (2, 1))
    assert entry["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert len([*(folders[2] / "half").glob("drawings/step-1/*.png")]) == len(PROMPTS)


def test_a_view_changes_no_bit_of_a_sharded_run(folders: dict[int, Path]) -> None:
    watched, unwatched = (folders[2] / run for run in ("float64", "unwatched"))
    files = sorted((watched / "checkpoint").glob("*.safetensors"))
    assert files and (watched / "drawings").is_dir() and not (unwatched / "drawings").exists()
    for file in files:
        assert file.read_bytes() == (unwatched / "checkpoint" / file.name).read_bytes(), file.name
