"""Two processes with batches of different kinds do not hang, and their gradients are those of one process.

One launch of `uneven_processes.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import layouts
import uneven_processes
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from processes import run_in_two


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    run_in_two(uneven_processes.__file__, folder)
    return folder


@pytest.fixture(scope="module")
def results(two_processes: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((two_processes / "results.json").read_text())
    return found


@pytest.mark.parametrize("variant", uneven_processes.VARIANTS)
def test_gradients_of_every_pair_of_batches_are_those_of_one_process(
    results: dict[str, Any], variant: str
) -> None:
    errors = results[variant]
    assert len(errors) == len(uneven_processes.VARIANTS[variant][2])
    assert max(errors.values()) < 1e-11, errors


def test_units_are_gathered_once_for_each_pass_that_needs_them(results: dict[str, Any]) -> None:
    """The root is gathered once for all passes of an update; gradients are scattered in each pass."""
    counted = results["full counted"]
    assert counted["forward"] > counted["backward"] > counted["trained"] > 0
    assert counted["counts"] == {
        "gather": counted["forward"] + counted["backward"] + 1,
        "scatter": counted["trained"] + uneven_processes.PASSES,
        "reduce": 0,
    }


def test_replicas_meet_once_in_an_update(results: dict[str, Any]) -> None:
    counted = results["none counted"]
    trained = counted["trained"] // uneven_processes.PASSES
    assert counted["counts"] == {"gather": 0, "scatter": 0, "reduce": trained + 1}


@pytest.mark.parametrize("run", ["full counted", "none counted", "half"])
def test_passes_of_a_sharded_model_read_nothing_back_to_the_host(results: dict[str, Any], run: str) -> None:
    assert results[run]["reads"] == []


def test_half_precision_gathers_units_in_bfloat16_and_reduces_in_float32(
    two_processes: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    assert results["half"]["dtypes"] == [
        "gather torch.bfloat16",
        "gather torch.float32",
        "scatter torch.float32",
    ]
    recipe = uneven_processes.counted_recipe(precision="bfloat16")
    train_recipe(recipe, Registry.load(), tmp_path / "one", datasets=[layouts.TinyDocuments()])
    expected, actual = (
        json.loads((out / "log.jsonl").read_text()) for out in (tmp_path / "one", two_processes / "half")
    )
    for name in ("lm", "denoising", "loss", "grad_norm"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-2), name
