"""Four processes, two on each machine, train the same model as one with each sharding.

One launch of `shardings.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import shardings
from processes import run_in


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    run_in(4, shardings.__file__, folder)
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    for precision in shardings.STEPS_OF:
        shardings.measured_run(folder / precision, precision)
    return folder


@pytest.mark.parametrize("precision", shardings.STEPS_OF)
@pytest.mark.parametrize("sharding", shardings.SHARDINGS)
def test_every_sharding_has_the_losses_and_the_gradient_of_one_process(
    four_processes: Path, one_process: Path, sharding: str, precision: str
) -> None:
    actual = four_processes / f"{sharding} {precision}"
    shardings.assert_same_run(actual, one_process / precision, precision)
    files = sorted((one_process / precision / "checkpoint").glob("*.safetensors"))
    assert files
    for file in files:
        expected, saved = load_file(file), load_file(actual / "checkpoint" / file.name)
        assert {name: tensor.shape for name, tensor in saved.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }


@pytest.mark.parametrize("sharding", shardings.SHARDINGS)
def test_a_run_continues_with_another_sharding(four_processes: Path, sharding: str) -> None:
    straight, resumed = (
        losses(four_processes / run) for run in (f"{sharding} float32", f"resumed {sharding}")
    )
    assert len(straight) == 5 and len(resumed) == 2
    for expected, actual in zip(straight[-2:], resumed, strict=True):
        assert actual == [None if value is None else pytest.approx(value, rel=1e-6) for value in expected]


def losses(out: Path) -> list[list[float | None]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[entry[name] for name in ("lm", "denoising", "loss")] for entry in entries]


@pytest.mark.parametrize("sharding", shardings.SHARDINGS)
def test_a_document_that_is_not_finite_is_named_with_every_sharding(
    four_processes: Path, sharding: str
) -> None:
    messages = {(four_processes / f"bad {sharding}.{rank}.txt").read_text() for rank in range(4)}
    (message,) = messages
    assert ": the loss is not finite: 'bad';" in message


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (
            "3",
            "hybrid expects as many processes on each machine, got 3 of 4 processes; change --nproc-per-node",
        ),
        ("1", "hybrid shards over the processes of a machine, got 1 of 4 processes; start several on each"),
        (
            "",
            "hybrid needs the number of processes of a machine in LOCAL_WORLD_SIZE, got none; start them with",
        ),
    ],
)
def test_hybrid_sharding_that_does_not_fit_the_processes_is_an_error(
    four_processes: Path, size: str, reason: str
) -> None:
    for rank in range(4):
        message = (four_processes / f"misfit {size}.{rank}.txt").read_text()
        assert message.startswith(f"train.sharding: {reason}")
    assert not (four_processes / "misfit").exists()
