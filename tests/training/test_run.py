"""Training runs: the same outcome in every layout and after every interruption, and both losses told apart."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from typer.testing import CliRunner

import layouts
import tiny
from dreamkit import TrainingError
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.cli import app
from dreamkit.data.batch import Collator
from dreamkit.document import Document, Image, Text
from dreamkit.errors import CheckpointError, DocumentError
from dreamkit.model.model import DreamModel, Losses
from dreamkit.parts.specs import Condition
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.loss_monitor import LossMonitor, NotFinite
from dreamkit.training.run import TrainResult, train_recipe
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import LogEntry, RunLog
from dreamkit.training.trainer import DreamTrainer, training_arguments

REGISTRY = Registry.load()


def run(
    out: Path,
    recipe: Recipe | None = None,
    *,
    documents: list[Document] | None = None,
    **options: Any,
) -> TrainResult:
    """A training run on the tiny documents."""
    return train_recipe(
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
            accumulated[name], tensor, rtol=0, atol=layouts.TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
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


def test_a_run_resumes_after_a_half_written_line_of_its_log(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    with pytest.raises(Interrupted):
        run(tmp_path, recipe, on_log=interrupt_at(2))
    log = tmp_path / "log.jsonl"
    whole = log.read_text().splitlines()
    log.write_text("\n".join(whole)[:-30])
    resumed = run(tmp_path, recipe, resume=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines == resumed.log
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "checkpoints", "log.jsonl"]
    log.write_text(f"{whole[0]}\n{whole[1][:-30]}\n{whole[1]}\n")
    with pytest.raises(TrainingError, match=r"log\.jsonl:2: not JSON"):
        run(tmp_path, recipe, resume=True)


def test_a_log_is_whole_while_it_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "lm": 2.0}\n')
    replacing: list[str] = []

    def looking(source: Path, target: Path) -> None:
        replacing.append(Path(target).read_text())
        Path(source).rename(target)

    monkeypatch.setattr("os.replace", looking)
    state = TrainerState()
    state.global_step = 1
    RunLog(log).on_train_begin(TrainingArguments(str(tmp_path)), state, TrainerControl())
    assert replacing == [log.read_text()]


def test_the_resume_point_before_a_damaged_one_is_named(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=3, save_every=1)
    straight = run(tmp_path / "out", recipe)
    points = tmp_path / "out/checkpoints"
    (points / "step-2/dream_queries.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"damaged(.|\n)*remove it; then --resume goes on from \S*step-1"
    ):
        run(tmp_path / "out", recipe, resume=True)
    shutil.rmtree(points / "step-2")
    same(weights(run(tmp_path / "out", recipe, resume=True).model), weights(straight.model))
    shutil.rmtree(points / "step-2")
    (points / "step-1/dream_queries.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path / "out", recipe, resume=True)
    assert "--resume" not in str(caught.value)


def test_everything_is_written_with_the_registry_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = layouts.recipe(save_every=1)

    def load() -> Registry:
        raise AssertionError("the plug-ins that are installed are not those of this run")

    monkeypatch.setattr(Registry, "load", load)
    run(tmp_path, recipe)


def test_a_model_is_trained_by_the_recipe_of_the_run(tmp_path: Path) -> None:
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
    with pytest.raises(TrainingError, match=r"model\.dream_queries: 3 there, 5 now"):
        run(tmp_path / "other", other, model=build(fit(recipe, REGISTRY)))


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


def test_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.trainable.*model\.adapters"):
        run(tmp_path, layouts.recipe(trainable=[]))


def test_adapters_learn_without_being_named(tmp_path: Path) -> None:
    recipe = layouts.recipe(**{"trainable": []}, adapters=[{"target": "language_model", "rank": 2}])
    model = build(fit(recipe, REGISTRY))
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
    drawn = Document((Image(tiny.picture(0), draw=True, read=False, train_on=False),))
    (entry,) = run(tmp_path / "image", layouts.recipe(steps=1), documents=[drawn]).log
    assert entry["denoising"] is not None and entry["lm"] is None


@pytest.mark.parametrize("save_every", [0, 1])
@pytest.mark.parametrize("packing", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, save_every: int, packing: bool) -> None:
    # With condition_drop the rows hold an unconditional sequence and a dummy too, which nobody could look at.
    recipe = layouts.recipe(
        steps=12,
        batch_size=2,
        packing=packing,
        log_every=20,
        save_every=save_every,
        learning_rate=1e-5,
        seed=1,
    )
    recipe = replace(recipe, loss=replace(recipe.loss, condition_drop=0.5))
    model = build(fit(recipe, REGISTRY))
    layouts.spoil(model)
    before = weights(model)
    with pytest.raises(TrainingError, match=r"step 3: the loss is not finite: 'bad'; nothing was saved"):
        run(tmp_path, recipe, documents=layouts.one_bad_document(), model=model)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == (["step-1", "step-2"] if save_every else [])
    assert not (tmp_path / "checkpoint").exists()
    spoilt = [
        name for name, tensor in weights(model).items() if tensor.isnan().sum() > before[name].isnan().sum()
    ]
    assert spoilt == []


def spoil_gradients(model: DreamModel, which: Callable[[Tensor], Tensor]) -> None:
    """Makes the gradient of the embeddings of token ids for which `which` is true something that is not finite."""

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        where = which(args[0])[..., None]
        output.register_hook(lambda gradient: gradient.masked_fill(where, float("inf")))

    layouts.embedding(model).register_forward_hook(hook)


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, save_every: int) -> None:
    recipe = layouts.recipe(steps=4, log_every=20, save_every=save_every, seed=1, accumulation=2)
    model = build(fit(recipe, REGISTRY))
    (tilde,) = model.language_model.tokenize("~")
    spoil_gradients(model, lambda ids: ids == tilde)
    with pytest.raises(TrainingError, match=r"step 2: the gradient is not finite: 'bad'; nothing was saved"):
        run(tmp_path, recipe, documents=layouts.one_bad_document(), model=model)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*")) == ["step-1"][:save_every]
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "log.jsonl").read_text()
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


def test_documents_that_are_only_bad_together(tmp_path: Path) -> None:
    documents = [Document((Text(name),), name=name) for name in ("one", "two")]
    model = build(fit(layouts.recipe(), REGISTRY))
    (end, *_) = model.language_model.spec.eos_ids
    # A document alone has two ends in its row: its own, and that of the dummy that draws.
    spoil_gradients(model, lambda ids: (ids == end) & ((ids == end).sum(1, keepdim=True) > 2))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite, though each") as caught:
        run(tmp_path, documents=documents, model=model)
    assert "'one'" in str(caught.value) and "'two'" in str(caught.value)


def test_the_log_holds_no_number_that_is_not_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    arguments, state, control = TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl()
    log.on_train_begin(arguments, state, control)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.on_log(arguments, state, control, {"lm": 1.0, "grad_norm": float("nan")})
    assert log.path.read_text() == ""


READS = ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")


def reading_nothing(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """`method`, in which no tensor may be copied to the host."""

    def forbidden(name: str) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"Tensor.{name} waits for the device")

        return read

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        with pytest.MonkeyPatch.context() as patch:
            for name in READS:
                patch.setattr(torch.Tensor, name, forbidden(name))
            return method(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("name", READS)
def test_every_read_of_a_tensor_is_seen(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        reading_nothing(lambda: getattr(torch.ones(()), name)(), [])()


def test_a_step_reads_nothing_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("training_step", "_get_grad_norm"):
        monkeypatch.setattr(DreamTrainer, name, reading_nothing(getattr(DreamTrainer, name), calls))
    run(tmp_path, layouts.recipe(steps=2, accumulation=2))
    assert calls == 2 * ["training_step", "training_step", "_get_grad_norm"]


def test_a_meter_begins_anew_after_it_was_read() -> None:
    model = tiny.model()
    batch = layouts.uneven_batches(model)[1]
    losses = Losses(*(tensor.detach() for tensor in model(batch)))
    meter = LossMonitor(torch.device("cpu"))
    for step in range(1, 4):
        meter.add(step, [0, 1], losses, batch.counts)
    assert meter.read() == pytest.approx({"lm": float(losses.lm), "denoising": float(losses.denoising)})
    assert meter.read() == {"lm": None, "denoising": None}


def test_the_first_step_that_is_not_finite_is_found_and_its_loss_before_its_gradient() -> None:
    meter = LossMonitor(torch.device("cpu"))
    nan = float("nan")

    def add(step: int, documents: list[int], by_document: list[float], norm: float | None) -> None:
        values = torch.tensor(by_document)
        meter.add(step, documents, Losses(values.sum(), values[0], values[0], values), torch.ones(2))
        if norm is not None:
            meter.add_gradient(step, torch.tensor(norm))

    assert meter.check() is None
    add(1, [0, 1], [1, 1], 1.0)
    add(2, [2, 3], [1, 1], None)
    add(2, [4, 5], [1, 1], nan)
    add(3, [6, 7], [1, nan], nan)
    assert meter.check() == NotFinite(2, "gradient", (2, 3, 4, 5))
    assert meter.check() is None
    add(4, [0, 1], [1, nan], None)
    add(4, [2, 3], [1, 1], nan)
    assert meter.check() == NotFinite(4, "loss", (1,))
    add(5, [0, 1], [1, 1, nan], 1.0)  # what the collator added is no document
    assert meter.check() == NotFinite(5, "loss", (0, 1))


def test_the_prompt_is_dropped_image_by_image() -> None:
    model = tiny.model()
    documents = [Document((Text(str(n)), Image(tiny.picture(n), draw=True, read=False))) for n in range(12)]
    preprocess = model.vision_encoder.preprocess, model.image_decoder.preprocess
    batch = layouts.FixedNoise(Collator(model.sequencer(), *preprocess, condition_drop=0.5))(documents)
    conditions = []
    loss = model.image_decoder.loss

    def keep(latents: Tensor, condition: Condition, *args: Any, **kwargs: Any) -> Tensor:
        conditions.append(condition.context)
        return loss(latents, condition, *args, **kwargs)

    model.image_decoder.loss = keep
    with torch.no_grad():
        for drop in (0.0, 1.0, 0.5):
            torch.manual_seed(0)
            model(replace(batch, condition_drop=drop))
    given, dropped, mixed = conditions
    assert not torch.isclose(given, dropped).all((1, 2)).any()
    is_dropped = (mixed == dropped).all((1, 2))
    assert torch.equal(mixed, torch.where(is_dropped[:, None, None], dropped, given))
    assert 2 <= is_dropped.sum() <= 10


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


def test_a_run_on_a_gpu_says_whether_kernels_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Said(Exception):
        pass

    def say(device: torch.device) -> str:
        return f"fused kernels: off, on {device}"

    def stop(*_: Any) -> None:
        raise Said

    monkeypatch.setattr("dreamkit.kernels.kernel_status", say)
    monkeypatch.setattr("dreamkit.training.run.open_cache", stop)
    for kind, said in (("cpu", ""), ("cuda", "fused kernels: off, on cuda\n")):
        arguments = SimpleNamespace(device=torch.device(kind))
        monkeypatch.setattr("dreamkit.training.run.training_arguments", lambda *_, found=arguments: found)
        with pytest.raises(Said):
            run(tmp_path / kind)
        assert capsys.readouterr().err == said


def test_the_bar_shows_both_losses_and_the_steps(tmp_path: Path) -> None:
    bar, state, control = RunBar(), TrainerState(), TrainerControl()
    arguments = training_arguments(layouts.recipe(), tmp_path)

    def shown() -> str:
        console = Console(width=120, file=StringIO(), record=True)
        console.print(bar.bar.progress)
        return console.export_text()

    state.max_steps = 8
    bar.on_train_begin(arguments, state, control)
    assert "0/8" in shown() and "text -  image -" in shown()
    state.global_step = 2
    bar.on_step_end(arguments, state, control)
    bar.on_log(arguments, state, control, logs={"lm": 1.25, "denoising": 0.5, "loss": 6.25})
    assert "2/8" in shown() and "text 1.2500  image 0.5000" in shown()
    bar.on_log(arguments, state, control, logs={"lm": 0.75, "denoising": None})
    assert "text 0.7500  image -" in shown()
    bar.stop()


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
