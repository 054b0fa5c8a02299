"""Training runs: layouts of the global batch, trainable parts, settings, stages, and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.cli import app
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, TrainingError
from dreamkit.registry.registry import Registry
from dreamkit.runs.log_entries import LogEntry
from dreamkit.training.run import train_recipe
from runs import REGISTRY, assert_identical, run, weights


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 4), (2, 2)])
def test_four_documents_at_once_equal_four_accumulated(
    tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    at_once = layouts.train_layout(tmp_path / "at once", 4, 1).state_dict()
    accumulated = layouts.train_layout(tmp_path / "accumulated", batch_size, accumulation).state_dict()
    for name, tensor in at_once.items():
        torch.testing.assert_close(
            accumulated[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module", params=layouts.STEPS_OF)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a precision, and the folder of a run in it."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    layouts.measured_run(folder, request.param)
    return request.param, folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 2, "micro_batch": 1},
        {"workers": 3, "packing": False, "micro_batch": 2},
        {"batch_size": 1, "accumulation": 5},
        {"batch_size": 5, "packing": False, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_losses_and_gradient_depend_on_recipe_and_seed_alone(
    measured: tuple[str, Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    precision, folder = measured
    layouts.measured_run(tmp_path, precision, **settings)
    layouts.assert_same_run(tmp_path, folder, precision)


def test_a_run_uses_its_own_registry_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = layouts.recipe(save_every=1)

    def load() -> Registry:
        raise AssertionError("Registry.load was called")

    monkeypatch.setattr(Registry, "load", load)
    run(tmp_path, recipe)


def test_a_given_model_is_trained_with_the_recipe_of_the_run(tmp_path: Path) -> None:
    model = build(fit(layouts.recipe(steps=1), REGISTRY))
    recipe = layouts.recipe(steps=2)
    recipe = replace(recipe, loss=replace(recipe.loss, lm=0.25, denoising=0.0))
    result = run(tmp_path / "given", recipe, model=model)
    assert result.log[0]["loss"] == pytest.approx(0.25 * (result.log[0]["lm"] or 0.0), rel=1e-4)
    reloaded, _ = load_checkpoint(result.checkpoint, REGISTRY)
    assert reloaded.recipe is not None
    assert (reloaded.recipe.train.steps, reloaded.recipe.loss) == (2, recipe.loss)
    after = run(tmp_path / "after", replace(recipe, init=str(result.checkpoint)))
    assert (after.model.recipe, after.model.lm_weight, after.model.denoising_weight) == (
        replace(recipe, init=str(result.checkpoint)),
        0.25,
        0.0,
    )
    other = replace(recipe, model=replace(recipe.model, dream_queries=5))
    with pytest.raises(TrainingError, match=r"model\.dream_queries: was 3, is 5"):
        run(tmp_path / "other", other, model=build(fit(recipe, REGISTRY)))


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"not empty; pass a new folder with --out"):
        run(out)
    with pytest.raises(TrainingError, match="no resume point"):
        run(out, resume=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_only_trainable_parts_change(tmp_path: Path) -> None:
    names = ["condition_projector", "dream_queries", "new_tokens"]
    recipe = layouts.recipe(trainable=names)
    model = build(fit(recipe, REGISTRY))
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


def test_a_run_without_trainable_parts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.trainable.*model\.adapters"):
        run(tmp_path, layouts.recipe(trainable=[]))


def test_adapters_are_trained_without_being_named(tmp_path: Path) -> None:
    recipe = layouts.recipe(**{"trainable": []}, adapters=[{"target": "language_model", "rank": 2}])
    model = build(fit(recipe, REGISTRY))
    before = weights(model)
    after = weights(run(tmp_path, recipe, model=model).model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed and all(".lora_" in name for name in changed)


def test_the_error_of_a_document_names_it(tmp_path: Path) -> None:
    long = Document((Text("x" * 300),), name="the long one")
    with pytest.raises(DocumentError, match=r"the long one: .*; or set train\.too_long to cut or skip"):
        run(tmp_path, layouts.recipe(too_long="stop"), documents=[long])


@pytest.mark.parametrize("settings", [{"workers": 1}, {"gradient_checkpointing": True}])
def test_workers_and_gradient_checkpointing_change_no_weight(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    plain, other = run(tmp_path / "plain"), run(tmp_path / "other", layouts.recipe(**settings))
    assert_identical(weights(other.model), weights(plain.model))


def test_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    half = run(tmp_path / "half", layouts.recipe(precision="bfloat16"))
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    pairs = [
        (a[name], b[name]) for a, b in zip(plain.log, half.log, strict=True) for name in ("lm", "denoising")
    ]
    assert any(a != b for a, b in pairs)
    assert all(a == (None if b is None else pytest.approx(b, rel=0.05)) for a, b in pairs)


def test_init_starts_from_the_weights_of_a_stage_before(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    recipe = layouts.recipe(steps=1, learning_rate=1e-12, init=str(first.checkpoint))
    second = run(tmp_path / "second", recipe)
    for name, tensor in weights(second.model).items():
        torch.testing.assert_close(tensor, weights(first.model)[name], rtol=0, atol=1e-9)


def test_a_run_prints_its_attention_and_on_a_gpu_the_status_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(Exception):
        pass

    def status(device: torch.device) -> str:
        return f"fused kernels: off, on {device}"

    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr("dreamkit.kernels.kernel_status", status)
    monkeypatch.setattr("dreamkit.training.run.open_cache", stop)
    for kind, message in (("cpu", ""), ("cuda", "fused kernels: off, on cuda\n")):
        monkeypatch.setattr("dreamkit.training.run.join", lambda kind=kind: torch.device(kind))
        with pytest.raises(Stopped):
            run(tmp_path / kind)
        assert capsys.readouterr().err == f"attention: in each document of a row alone\n{message}"


def test_the_train_command(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        tiny.picture(number).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"picture {number}")
    settings = {"trainable": ["dream_queries"], "steps": 2, "batch_size": 1}
    recipe = tiny.recipe(train=settings, data=[{"name": "pairs", "path": "images"}])
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    command = ["train", str(tmp_path / "tiny.yaml"), "train.save_every=1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and str(tmp_path / "out/checkpoint") in result.output.replace("\n", "")
    result = CliRunner().invoke(app, [*command, "--resume"], catch_exceptions=False)
    assert result.exit_code == 0
    with pytest.raises(TrainingError, match="not empty"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "out/checkpoint")], catch_exceptions=False)
    assert result.exit_code == 0 and "dream_queries" in result.output and "vicuna" in result.output


def test_a_run_prints_the_notes_of_its_data_as_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = layouts.TinyDocuments()
    data.notes = ["[/x] :fire: not read"]
    train_recipe(layouts.recipe(steps=1), REGISTRY, tmp_path / "out", datasets=[data])
    assert capsys.readouterr().err.count("[/x] :fire: not read\n") == 1
