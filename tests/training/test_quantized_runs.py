"""Two processes train a model with quantized parts as one does, with each sharding."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import quantized_runs
from processes import run_in_two

# Launches of processes that take minutes on two cores.
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_in_two(quantized_runs.__file__, folder)
    quantized_runs.run(folder, "one")
    return folder


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", quantized_runs.LAYOUTS)
def test_losses_and_weights_are_those_of_one_process(folder: Path, name: str) -> None:
    expected = losses(folder / "one")
    assert len(expected) == 3 and expected[-1] < expected[0]
    assert losses(folder / name) == [pytest.approx(value, rel=1e-9) for value in expected]
    saved = sorted((folder / "one/checkpoint").rglob("*.safetensors"))
    assert any("adapters" in file.parts for file in saved)
    for file in saved:
        other = load_file(folder / name / file.relative_to(folder / "one"))
        for tensor_name, tensor in load_file(file).items():
            assert (other[tensor_name] - tensor).abs().max() < 1e-9, (file.name, tensor_name)
