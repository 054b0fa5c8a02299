"""In a step of two processes no host waits for its device, and the hosts meet once."""

import json
from typing import Any

import pytest

import counted_steps
from counted_steps import RUNS, STEPS
from processes import run_in_two

PASSES = {"one pass": 1, "three passes": 3, "saved": 1}
TRAINED_UNITS = 3  # two layers of the language model, and the root; no layer of the other parts is trained


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return the counts of each run, by process."""
    folder = tmp_path_factory.mktemp("counts")
    run_in_two(counted_steps.__file__, folder)
    return {name: [json.loads((folder / f"{name}.{n}.json").read_text()) for n in range(2)] for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_step_of_two_processes_reads_no_value_of_a_tensor(counts: dict[str, Any], name: str) -> None:
    assert [each["reads"] for each in counts[name]] == [[], []]


@pytest.mark.parametrize("name", RUNS)
def test_the_hosts_meet_once_a_step(counts: dict[str, Any], name: str) -> None:
    assert [each["meeting"] for each in counts[name]] == [{"allgather_": STEPS}] * 2


@pytest.mark.parametrize("name", RUNS)
def test_a_step_reduces_each_trained_unit_once_a_pass_and_two_numbers(
    counts: dict[str, Any], name: str
) -> None:
    for each in counts[name]:
        numbers = {
            "all_reduce",
            "allreduce_",
        }  # the norm of the gradient, and the flag of a loss that is not finite
        assert each["step"].keys() == {"_allgather_base_", "_reduce_scatter_base_", *numbers}
        assert each["step"]["_reduce_scatter_base_"] == STEPS * PASSES[name] * TRAINED_UNITS
        assert {each["step"][name] for name in numbers} == {STEPS}
