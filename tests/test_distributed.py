"""Two processes under FSDP2 train the same model as one, and do not hang if their batches differ.

One launch of `layouts.py` runs everything for all tests; a hang ends at the timeout and fails.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import layouts
import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.data.mixture import Mixture
from dreamkit.registry.registry import Registry
from dreamkit.training.resume_state import read_state
from dreamkit.training.run import train_recipe
from processes import run_in, run_in_two


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_in_two(layouts.__file__, folder)
    return folder


def test_a_process_with_text_and_one_with_images_share_gradients(two_processes: Path) -> None:
    model = tiny.model()
    batches = layouts.uneven_batches(model)
    counts = torch.stack([batch.counts for batch in batches]).sum(0)
    expected = layouts.gradients(model, batches, counts)
    actual = load_file(two_processes / "gradients.safetensors")
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def four_at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    layouts.train_layout(folder, batch_size=4, accumulation=1)
    return folder


@pytest.mark.parametrize("layout", ["2x2", "2x1x2"])
def test_four_documents_over_two_processes_equal_four_at_once(
    two_processes: Path, four_at_once: Path, layout: str
) -> None:
    files = sorted((four_at_once / "checkpoint").glob("*.safetensors"))
    assert files
    for file in files:
        expected, actual = load_file(file), load_file(two_processes / layout / "checkpoint" / file.name)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                actual[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_adapters_over_two_processes_equal_those_of_one(two_processes: Path, tmp_path: Path) -> None:
    layouts.train_layout(tmp_path, 4, 1, layouts.ADAPTERS)
    for adapter in layouts.ADAPTERS:
        file = Path("checkpoint/adapters", adapter["target"], "adapter_model.safetensors")
        expected, actual = load_file(tmp_path / file), load_file(two_processes / "adapted" / file)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                actual[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )
    loaded, report = load_checkpoint(two_processes / "adapted/checkpoint")
    assert not any(part.missing for part in report.parts.values())
    assert any("lora_magnitude_vector" in name for name in loaded.state_dict())


@pytest.mark.parametrize("precision", layouts.STEPS_OF)
def test_two_processes_compute_the_losses_and_the_gradient_of_one(
    two_processes: Path, tmp_path: Path, precision: str
) -> None:
    layouts.measured_run(tmp_path, precision)
    layouts.assert_same_run(two_processes / precision, tmp_path, precision)


def test_one_of_two_processes_writes_to_trackers(two_processes: Path) -> None:
    folder = two_processes / "float32/trackers"
    patterns = ("tensorboard/events.*", "wandb/offline-run-*/run-*.wandb")
    assert [len([*folder.glob(pattern)]) for pattern in patterns] == [1, 1]


def test_two_processes_train_on_the_digits_like_one(two_processes: Path, tmp_path: Path) -> None:
    layouts.digits_run(tmp_path)
    layouts.assert_same_run(two_processes / "digits", tmp_path, "float32")


@pytest.mark.parametrize("layout", ["2x2", "2x1x2"])
def test_two_processes_log_the_losses_of_both(two_processes: Path, four_at_once: Path, layout: str) -> None:
    expected, actual = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (four_at_once, two_processes / layout)
    )
    assert len(expected) == len(actual) == layouts.STEPS
    for before, after in zip(expected, actual, strict=True):
        for name in ("lm", "denoising", "grad_norm", *(f"grad_norm.{part}" for part in layouts.TRAINABLE)):
            assert before[name] is not None and after[name] == pytest.approx(before[name], rel=1e-5), name


def test_a_document_that_is_not_finite_is_named_in_both_processes(two_processes: Path) -> None:
    ranks = set()
    for seed in layouts.BAD_SEEDS:
        messages = [(two_processes / f"bad-{seed}.{rank}.txt").read_text() for rank in range(2)]
        assert messages[0] == messages[1] and ": the loss is not finite: 'bad';" in messages[0]
        documents = Mixture([layouts.TinyDocuments(layouts.one_bad_document())], [1.0], seed, length=12)
        first = next(index for index in range(12) if documents[index].name == "bad")
        assert messages[0].startswith(f"step {first // 2 + 1}:")
        ranks.add(first % 2)
        assert not (two_processes / f"bad-{seed}/checkpoint").exists()
    assert ranks == {0, 1}


@pytest.mark.parametrize(
    ("reason", "message"), [("error", "this document is cut"), ("signal", "interrupted by SIGTERM")]
)
def test_an_error_or_a_signal_in_one_process_saves_both(
    two_processes: Path, reason: str, message: str
) -> None:
    for rank in range(2):
        left = (two_processes / f"left by {reason}.{rank}.txt").read_text()
        assert left.startswith(message) and "; step " in left and "--resume" in left
    files = sorted((two_processes / "straight/checkpoint").glob("*.safetensors"))
    assert files
    for file in files:
        resumed = two_processes / f"left by {reason}" / "checkpoint" / file.name
        assert file.read_bytes() == resumed.read_bytes(), file.name


def test_two_processes_skip_the_documents_that_one_skips(two_processes: Path, tmp_path: Path) -> None:
    recipe = layouts.recipe(batch_size=4)
    train_recipe(recipe, Registry.load(), tmp_path / "one", datasets=[layouts.BadDocuments()])
    one, two = tmp_path / "one", two_processes / "skipping"
    assert (one / "skipped.jsonl").read_text() == (two / "skipped.jsonl").read_text() != ""
    totals = [
        [json.loads(line)["skipped"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert totals[0] == totals[1] and totals[0][-1] == len((one / "skipped.jsonl").read_text().splitlines())


def test_too_many_bad_documents_stop_both_processes_before_the_same_step(two_processes: Path) -> None:
    messages = [(two_processes / f"too many.{rank}.txt").read_text() for rank in range(2)]
    assert messages[0] == messages[1]
    assert "expected at most 1.00% bad documents (train.max_skipped), got " in messages[0]
    assert "in /data/a.tar; " in messages[0] and "step 0 is saved in " in messages[0]


def test_more_processes_than_documents_of_an_update_are_an_error(two_processes: Path) -> None:
    for rank in range(2):
        message = (two_processes / f"few.{rank}.txt").read_text()
        assert message.startswith(
            "expected at most 1 process, one for each document of an update, got 2; start"
        )
    assert not (two_processes / "few").exists()


def resume_from(point: Path, out: Path) -> Path:
    """Copy a resume point into a new folder of a run; return the folder."""
    shutil.copytree(point, out / "checkpoints" / point.name)
    return out


def losses(out: Path) -> dict[int, list[float | None]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: [entry[name] for name in ("lm", "denoising", "loss")] for entry in entries}


def test_one_process_and_then_three_continue_a_run_of_two(two_processes: Path, tmp_path: Path) -> None:
    straight = two_processes / "straight"
    expected = {
        step: [None if value is None else pytest.approx(value, rel=1e-6) for value in each]
        for step, each in losses(straight).items()
    }
    one = resume_from(two_processes / "resumed/checkpoints/step-1", tmp_path / "one")
    data = [layouts.TinyDocuments()]
    train_recipe(layouts.recipe(save_every=1), Registry.load(), one, datasets=data, resume=True)
    assert losses(one) == {step: expected[step] for step in (2, 3)}
    three = resume_from(one / "checkpoints/step-2", tmp_path / "three")
    run_in(3, layouts.__file__, three)
    assert losses(three) == {3: expected[3]}
    assert read_state(three / "checkpoints/step-2").global_batch == 4
    assert (three / "checkpoint").is_dir()


def test_two_processes_resume_bitwise_identically(two_processes: Path) -> None:
    files = sorted((two_processes / "straight/checkpoint").glob("*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (two_processes / "resumed/checkpoint" / file.name).read_bytes(), file.name


def test_two_processes_skip_the_spikes_of_one(two_processes: Path, tmp_path: Path) -> None:
    layouts.spike_run(tmp_path)
    one, two = (
        [json.loads(line) for line in (folder / "spikes.jsonl").read_text().splitlines()]
        for folder in (tmp_path, two_processes / "spikes")
    )
    assert len(one) == len(two) >= 1
    for spike, other in zip(one, two, strict=True):
        assert (spike["step"], spike["documents"]) == (other["step"], other["documents"])
        # only the pass with the bad document has large gradients, so the norms differ
        assert min(each["norm"] / each["median"] for each in (spike, other)) > 8
    messages = [(two_processes / f"spike.{rank}.txt").read_text() for rank in range(2)]
    assert messages[0] == messages[1] and messages[0].startswith(
        "step 3: expected a gradient norm of at most 8"
    )
    assert "step 2 is saved in" in messages[0]
