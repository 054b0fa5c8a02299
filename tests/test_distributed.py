"""Two processes under FSDP2: no layout changes what is learned, and nothing hangs when their batches differ.

One launch of `layouts.py` does the work for all tests; a hang ends at the timeout and fails.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import layouts
import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.mixture import Mixture
from dreamkit.errors import TrainingError
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from processes import run_in_two


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_in_two(layouts.__file__, str(folder))
    return folder


def test_one_process_with_text_alone_and_one_with_images(launched: Path) -> None:
    model = tiny.model()
    batches = layouts.uneven_batches(model)
    counts = torch.stack([batch.counts for batch in batches]).sum(0)
    expected = layouts.gradients(model, batches, counts)
    found = load_file(launched / "gradients.safetensors")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def four_at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    save_checkpoint(layouts.train_layout(folder, batch_size=4, accumulation=1), folder / "checkpoint")
    return folder


@pytest.mark.parametrize("layout", ["2x2", "2x1x2"])
def test_four_documents_over_two_processes_equal_four_at_once(
    launched: Path, four_at_once: Path, layout: str
) -> None:
    files = sorted((four_at_once / "checkpoint").glob("*.safetensors"))
    assert len(files) == 6
    for file in files:
        expected, found = load_file(file), load_file(launched / layout / "checkpoint" / file.name)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_adapters_learn_the_same_over_two_processes(launched: Path, tmp_path: Path) -> None:
    alone = layouts.train_layout(tmp_path, 4, 1, layouts.ADAPTERS)
    save_checkpoint(alone, tmp_path / "checkpoint")
    for adapter in layouts.ADAPTERS:
        file = Path("checkpoint/adapters", adapter["target"], "adapter_model.safetensors")
        expected, found = load_file(tmp_path / file), load_file(launched / "adapted" / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )
    loaded, report = load_checkpoint(launched / "adapted/checkpoint")
    assert not any(part.missing for part in report.parts.values())
    assert any("lora_magnitude_vector" in name for name in loaded.state_dict())


@pytest.mark.parametrize("layout", ["2x2", "2x1x2"])
def test_two_processes_log_the_losses_of_both(launched: Path, four_at_once: Path, layout: str) -> None:
    expected, found = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (four_at_once, launched / layout)
    )
    assert len(expected) == len(found) == layouts.STEPS
    for before, after in zip(expected, found, strict=True):
        for name in ("lm", "denoising", "grad_norm"):
            assert before[name] is not None and after[name] == pytest.approx(before[name], rel=1e-5), name


def test_the_document_that_is_not_finite_is_named_whoever_had_it(launched: Path) -> None:
    ranks = set()
    for seed in layouts.BAD_SEEDS:
        said = [(launched / f"bad-{seed}.{rank}.txt").read_text() for rank in range(2)]
        assert said[0] == said[1] and ": the loss is not finite: 'bad';" in said[0]
        documents = Mixture([layouts.TinyDocuments(layouts.one_bad_document())], [1.0], 12, seed)
        first = next(index for index in range(12) if documents[index].name == "bad")
        assert said[0].startswith(f"step {first // 2 + 1}:")
        ranks.add(first % 2)
        assert not (launched / f"bad-{seed}/checkpoint").exists()
    assert ranks == {0, 1}


def test_a_run_of_two_processes_is_not_resumed_by_one(launched: Path) -> None:
    data = [layouts.TinyDocuments()]
    with pytest.raises(TrainingError, match="written by 2 processes, but 1 are here now"):
        train_recipe(
            layouts.recipe(save_every=1), Registry.load(), launched / "straight", datasets=data, resume=True
        )


def test_two_processes_resume_where_they_were(launched: Path) -> None:
    files = sorted((launched / "straight/checkpoint").glob("*.safetensors"))
    assert len(files) == 6
    for file in files:
        assert file.read_bytes() == (launched / "resumed/checkpoint" / file.name).read_bytes(), file.name
