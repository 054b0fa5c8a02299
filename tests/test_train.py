"""Training runs: the same outcome in every layout and after every interruption, and both losses told apart."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import layouts
import tiny
from dreamkit import TrainingError
from dreamkit.build import build
from dreamkit.checkpoint import load_checkpoint
from dreamkit.cli import app
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError
from dreamkit.meter import Meter
from dreamkit.model import DreamModel, Losses
from dreamkit.plugins import Registry
from dreamkit.progress import LogEntry
from dreamkit.recipe import Recipe
from dreamkit.train import TrainResult, train

REGISTRY = Registry.load()


def run(
    out: Path,
    recipe: Recipe | None = None,
    *,
    documents: list[Document] | None = None,
    **options: Any,
) -> TrainResult:
    """A training run on the tiny documents."""
    return train(
        recipe or layouts.recipe(), REGISTRY, out, datasets=[layouts.TinyDocuments(documents)], **options
    )


def weights(model: DreamModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (2, 2)])
def test_four_at_once_equal_four_accumulated(tmp_path: Path, batch_size: int, accumulation: int) -> None:
    at_once = layouts.train_layout(tmp_path / "at once", 4, 1).state_dict()
    accumulated = layouts.train_layout(tmp_path / "accumulated", batch_size, accumulation).state_dict()
    for name, tensor in at_once.items():
        torch.testing.assert_close(
            accumulated[name], tensor, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


class Interrupted(Exception):
    pass


def interrupt_at(step: int) -> Any:
    def on_log(entry: LogEntry) -> None:
        if entry["step"] == step:
            raise Interrupted

    return on_log


def timeless(log: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "steps_per_second"} for entry in log]


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=5, save_every=2, accumulation=2)
    straight = run(tmp_path / "straight", recipe)
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", recipe, on_log=interrupt_at(3))
    assert not (tmp_path / "resumed/checkpoint").exists()
    torch.manual_seed(123)  # what the interrupted process left behind must not matter
    resumed = run(tmp_path / "resumed", recipe, resume=True)
    same(weights(resumed.model), weights(straight.model))
    assert timeless(resumed.log) == timeless(straight.log)
    lines = [json.loads(line) for line in (tmp_path / "resumed/log.jsonl").read_text().splitlines()]
    assert lines == resumed.log
    reloaded, _ = load_checkpoint(resumed.checkpoint, REGISTRY)
    same(weights(reloaded), weights(straight.model))


def test_the_last_two_resume_points_are_kept(tmp_path: Path) -> None:
    result = run(tmp_path / "out", layouts.recipe(steps=4, save_every=1))
    points = tmp_path / "out/checkpoints"
    assert sorted(path.name for path in points.iterdir()) == ["step-2", "step-3"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "checkpoint",
        "checkpoints",
        "log.jsonl",
    ]
    for folder in (points / "step-3", result.checkpoint):
        load_checkpoint(folder, REGISTRY)


def test_out_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"not empty.*--resume.*--out"):
        run(out)
    with pytest.raises(TrainingError, match="nothing to resume"):
        run(out, resume=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_only_the_same_recipe_resumes(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, layouts.recipe(save_every=1), on_log=interrupt_at(2))
    with pytest.raises(TrainingError, match=r"train\.learning_rate: 0\.01 there, 0\.5 now"):
        run(tmp_path, layouts.recipe(save_every=1, learning_rate=0.5), resume=True)
    run(tmp_path, layouts.recipe(save_every=2, log_every=2), resume=True)


def test_only_what_is_trainable_learns(tmp_path: Path) -> None:
    names = ["condition_projector", "dream_queries", "new_tokens"]
    recipe = layouts.recipe(trainable=names)
    model = build(recipe, REGISTRY)
    before = weights(model)
    modes = []

    def on_log(entry: LogEntry) -> None:
        modes.append((model.vision_encoder.training, model.condition_projector.training))

    run(tmp_path, recipe, model=model, on_log=on_log)
    assert set(modes) == {(False, True)} and not model.training
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in changed} == {
        "language_model",
        "condition_projector",
        "dream_queries",
    }
    assert {name for name in changed if name.startswith("language_model")} == {
        "language_model.new_embed",
        "language_model.new_head",
    }


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.trainable.*model\.adapters"):
        run(tmp_path, layouts.recipe(trainable=[]))


def test_adapters_learn_without_being_named(tmp_path: Path) -> None:
    recipe = layouts.recipe(**{"trainable": []}, adapters=[{"target": "language_model", "rank": 2}])
    model = build(recipe, REGISTRY)
    before = weights(model)
    after = weights(run(tmp_path, recipe, model=model).model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed and all(".lora_" in name for name in changed)


def test_logged_losses_are_means_of_their_interval(tmp_path: Path) -> None:
    each = run(tmp_path / "each", layouts.recipe(steps=4, log_every=1)).log
    (both,) = run(tmp_path / "both", layouts.recipe(steps=4, log_every=4)).log
    for name in ("lm", "denoising"):
        values = [entry[name] for entry in each if entry[name] is not None]
        assert both[name] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert [entry["step"] for entry in each] == [1, 2, 3, 4] and both["step"] == 4


def test_the_last_step_is_logged(tmp_path: Path) -> None:
    log = run(tmp_path, layouts.recipe(steps=3, log_every=2)).log
    assert [entry["step"] for entry in log] == [2, 3]


def test_a_loss_nobody_had_is_not_zero(tmp_path: Path) -> None:
    (entry,) = run(tmp_path / "text", layouts.recipe(steps=1), documents=[Document((Text("words"),))]).log
    assert entry["denoising"] is None and entry["lm"] is not None
    drawn = Document((Image(tiny.picture(0), draw=True, read=False, learn=False),))
    (entry,) = run(tmp_path / "image", layouts.recipe(steps=1), documents=[drawn]).log
    assert entry["denoising"] is not None and entry["lm"] is None


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, save_every: int) -> None:
    documents = [Document((Text(f"good {n}"),), name=f"good {n}") for n in range(5)]
    documents.append(Document((Text("a ~"),), name="bad"))
    recipe = layouts.recipe(
        steps=12, batch_size=2, packing=False, log_every=20, save_every=save_every, learning_rate=1e-5
    )
    model = build(recipe, REGISTRY)
    (tilde,) = model.language_model.tokenize("~")
    with torch.no_grad():
        model.language_model.model.get_input_embeddings().weight[tilde] = float("nan")
    with pytest.raises(TrainingError, match=r"step \d+: the loss is not finite: 'bad' \(nan\)") as caught:
        run(tmp_path, recipe, documents=documents, model=model)
    step = int(str(caught.value).split()[1].rstrip(":"))
    assert "good" not in str(caught.value)
    saved = [int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*")]
    assert saved == ([] if not save_every else sorted(range(max(1, step - 2), step))) or step == 1
    assert not (tmp_path / "checkpoint").exists()


class HostReads(TorchDispatchMode):
    """Counts the copies from tensor to Python number."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_meter_reads_the_host_only_when_asked() -> None:
    model = tiny.model()
    batch = layouts.uneven_batches(model)[1]
    losses = Losses(*(tensor.detach() for tensor in model(batch)))
    meter = Meter(torch.device("cpu"))
    with HostReads() as reads:
        for step in range(1, 4):
            meter.add(step, batch, losses, batch.counts)
    assert reads.count == 0
    assert meter.read() == pytest.approx({"lm": float(losses.lm), "denoising": float(losses.denoising)})
    assert meter.read() == {"lm": None, "denoising": None}


def test_a_document_that_cannot_be_learned_is_named(tmp_path: Path) -> None:
    long = Document((Text("x" * 300),), name="the long one")
    with pytest.raises(DocumentError, match="the long one"):
        run(tmp_path, documents=[long])


@pytest.mark.parametrize("settings", [{"workers": 1}, {"gradient_checkpointing": True}])
def test_settings_that_change_nothing_that_is_learned(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain, other = run(tmp_path / "plain"), run(tmp_path / "other", layouts.recipe(**settings))
    same(weights(other.model), weights(plain.model))


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    half = run(tmp_path / "half", layouts.recipe(precision="bfloat16"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    pairs = [
        (a[name], b[name]) for a, b in zip(plain.log, half.log, strict=True) for name in ("lm", "denoising")
    ]
    assert any(a != b for a, b in pairs)
    assert all(a == (None if b is None else pytest.approx(b, rel=0.05)) for a, b in pairs)


def test_a_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    recipe = layouts.recipe(steps=1, learning_rate=1e-12, init=str(first.checkpoint))
    second = run(tmp_path / "second", recipe)
    for name, tensor in weights(second.model).items():
        torch.testing.assert_close(tensor, weights(first.model)[name], rtol=0, atol=1e-9)


def test_the_command_line(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        tiny.picture(number).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"picture {number}")
    settings = {"trainable": ["dream_queries"], "steps": 2, "batch_size": 1}
    recipe = tiny.recipe(train=settings, data=[{"name": "pairs", "path": "images"}])
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    command = ["train", str(tmp_path / "tiny.yaml"), "train.save_every=1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and str(tmp_path / "out/checkpoint") in done.output.replace("\n", "")
    done = CliRunner().invoke(app, [*command, "--resume"], catch_exceptions=False)
    assert done.exit_code == 0
    with pytest.raises(TrainingError, match="not empty"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "out/checkpoint")], catch_exceptions=False)
    assert done.exit_code == 0 and "dream_queries" in done.output and "vicuna" in done.output
