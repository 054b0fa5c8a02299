"""Losses of a run: their means in the log and the bar, and the error of a loss or gradient that is not finite."""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch
from dreamkit.document import Document, Image, Text
from dreamkit.errors import TrainingError
from dreamkit.model.losses import Losses
from dreamkit.model.model import DreamModel
from dreamkit.training.loss_monitor import LossMonitor, NotFinite
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import RunLog
from runs import REGISTRY, recorded_states, run, weights


def test_logged_losses_are_means_of_an_interval(tmp_path: Path) -> None:
    each = run(tmp_path / "each", layouts.recipe(steps=4, log_every=1)).log
    (whole,) = run(tmp_path / "both", layouts.recipe(steps=4, log_every=4)).log
    for name in ("lm", "denoising"):
        values = [entry[name] for entry in each if entry[name] is not None]
        assert whole[name] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert [entry["step"] for entry in each] == [1, 2, 3, 4] and whole["step"] == 4


def test_the_last_step_is_logged(tmp_path: Path) -> None:
    log = run(tmp_path, layouts.recipe(steps=3, log_every=2)).log
    assert [entry["step"] for entry in log] == [2, 3]


def test_a_loss_without_labels_or_images_is_null(tmp_path: Path) -> None:
    (entry,) = run(tmp_path / "text", layouts.recipe(steps=1), documents=[Document((Text("words"),))]).log
    assert entry["denoising"] is None and entry["lm"] is not None
    image = Document((Image(tiny.picture(0), draw=True, read=False, train_on=False),))
    (entry,) = run(tmp_path / "image", layouts.recipe(steps=1), documents=[image]).log
    assert entry["denoising"] is not None and entry["lm"] is None


@pytest.mark.parametrize("save_every", [0, 1])
@pytest.mark.parametrize("packing", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, save_every: int, packing: bool) -> None:
    # with condition_drop, rows also hold an unconditional sequence and a dummy, which the error must not name
    recipe = layouts.recipe(
        steps=12,
        batch_size=2,
        packing=packing,
        log_every=20,
        save_every=save_every,
        learning_rate=1e-5,
        seed=layouts.bad_seed(4, 5),
    )
    recipe = replace(recipe, loss=replace(recipe.loss, condition_drop=0.5))
    model = build(fit(recipe, REGISTRY))
    layouts.make_losses_nan(model)
    before = weights(model)
    with pytest.raises(TrainingError, match=r"step 3: the loss is not finite: 'bad'; check") as caught:
        run(tmp_path, recipe, documents=layouts.one_bad_document(), model=model)
    assert "no resume point was saved: the weights are not finite" in caught.value.__notes__[0]
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == (["step-1", "step-2"] if save_every else [])
    assert not (tmp_path / "checkpoint").exists()
    with_new_nans = [
        name for name, tensor in weights(model).items() if tensor.isnan().sum() > before[name].isnan().sum()
    ]
    assert with_new_nans == []


def make_gradients_infinite(model: DreamModel, select: Callable[[Tensor], Tensor]) -> None:
    """Make the gradients of the embeddings of tokens infinite if `select(ids)` is true for them."""

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        mask = select(args[0])[..., None]
        output.register_hook(lambda gradient: gradient.masked_fill(mask, float("inf")))

    layouts.embedding(model).register_forward_hook(hook)


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, save_every: int) -> None:
    seed = layouts.bad_seed(4, 5)
    recipe = layouts.recipe(steps=4, log_every=20, save_every=save_every, seed=seed, accumulation=2)
    model = build(fit(recipe, REGISTRY))
    (tilde,) = model.language_model.tokenize("~")
    make_gradients_infinite(model, lambda ids: ids == tilde)
    with pytest.raises(TrainingError, match=r"step 2: the gradient is not finite: 'bad'; check") as caught:
        run(tmp_path, recipe, documents=layouts.one_bad_document(), model=model)
    # the step before; later ones have changed nothing
    assert [path.name for path in (tmp_path / "checkpoints").glob("*")] == ["step-1"]
    assert caught.value.__notes__[0].startswith("step 1 is saved in")
    assert "start a new run with init=" in caught.value.__notes__[0]  # a resumed run has the same settings
    assert not (tmp_path / "checkpoint").exists() and not (tmp_path / "log.jsonl").read_text()
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(
    tmp_path: Path, quantity: str
) -> None:
    recipe = layouts.recipe(steps=4, log_every=20, seed=layouts.bad_seed(2, 3), weight_decay=0.1)
    model = build(fit(recipe, REGISTRY))
    (tilde,) = model.language_model.tokenize("~")
    if quantity == "gradient":
        make_gradients_infinite(model, lambda ids: ids == tilde)
    else:  # its gradient is finite
        make_losses_infinite(model, lambda ids: ids == tilde)
    with (
        recorded_states() as states,
        pytest.raises(TrainingError, match=f"step 2: the {quantity} is not finite: 'bad'; check"),
    ):
        run(tmp_path, recipe, documents=layouts.one_bad_document(), model=model)
    same = [all(map(torch.equal, before, after)) for before, after in pairwise(states)]
    assert len(states[0]) > 100 and same == [True] * 3  # the later ones, too


def make_losses_infinite(model: DreamModel, select: Callable[[Tensor], Tensor]) -> None:
    """Make the loss of a batch infinite if `select(ids)` is true for a token; the gradient stays as it is."""

    def hook(module: nn.Module, args: tuple[Batch], output: Losses) -> Losses:
        infinite = torch.where(select(args[0].input_ids_BT).any(), float("inf"), 0.0)
        return output._replace(loss=output.loss + infinite)

    model.register_forward_hook(hook)


def test_all_documents_are_named_if_each_alone_is_finite(tmp_path: Path) -> None:
    documents = [Document((Text(name),), name=name) for name in ("one", "two")]
    model = build(fit(layouts.recipe(), REGISTRY))
    (end, *_) = model.language_model.spec.eos_ids
    # A row of one document has two end tokens: its own and the dummy's.
    make_gradients_infinite(model, lambda ids: (ids == end) & ((ids == end).sum(1, keepdim=True) > 2))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite, though each") as caught:
        run(tmp_path, documents=documents, model=model)
    assert "'one'" in str(caught.value) and "'two'" in str(caught.value)


def test_a_nan_in_the_log_is_an_error(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.begin(step=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.add(1, {"lm": 1.0, "grad_norm": float("nan")})
    assert log.path.read_text() == ""


def test_reading_a_monitor_begins_an_interval_of_finished_steps() -> None:
    model = tiny.model()
    batch = layouts.uneven_batches(model)[1]
    losses = Losses(*(tensor.detach() for tensor in model(batch)))
    monitor = LossMonitor(torch.device("cpu"))
    for step in range(1, 4):
        monitor.add(step, [0, 1], losses, batch.counts)
        monitor.end_step()
    monitor.add(4, [0, 1], losses, batch.counts)
    monitor.drop_step()
    means = {name: float(getattr(losses, name)) for name in ("lm", "denoising", "loss")}
    assert monitor.read(3) == pytest.approx(means) and monitor.start == 3
    assert monitor.read(4) == {"lm": None, "denoising": None, "loss": 0.0}


def test_the_first_step_is_reported_and_its_loss_before_its_gradient() -> None:
    monitor = LossMonitor(torch.device("cpu"))
    nan = float("nan")

    def add(step: int, documents: list[int], by_document: list[float], norm: float | None) -> None:
        values = torch.tensor(by_document)
        monitor.add(step, documents, Losses(values.sum(), values[0], values[0], values), torch.ones(2))
        if norm is not None:
            monitor.add_gradient(step, torch.tensor(norm))

    assert monitor.check() is None
    add(1, [0, 1], [1, 1], 1.0)
    add(2, [2, 3], [1, 1], None)
    add(2, [4, 5], [1, 1], nan)
    add(3, [6, 7], [1, nan], nan)
    assert monitor.check() == NotFinite(2, "gradient", (2, 3, 4, 5))
    assert monitor.check() is None
    add(4, [0, 1], [1, nan], None)
    add(4, [2, 3], [1, 1], nan)
    assert monitor.check() == NotFinite(4, "loss", (1,))
    add(5, [0, 1], [1, 1, nan], 1.0)  # the third loss is of a dummy, not of a document
    assert monitor.check() == NotFinite(5, "loss", (0, 1))


def test_the_bar_shows_the_figures_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    bar = RunBar()

    def text() -> str:
        console = Console(width=120, file=StringIO(), record=True)
        console.print(bar.bar.progress)
        return console.export_text()

    bar.begin(0, 8)
    assert "0/8 text - image - 0:00:0" in text()
    bar.move(2)
    speeds = {"tokens_per_second": 12345.6, "images_per_second": 0.3456}
    values = {"lm": 1.25, "denoising": 0.5, "loss": 6.25, **speeds, "data_wait": 0.021, "memory": 2.5 * 2**30}
    bar.show(values)
    assert "2/8 text 1.2500 image 0.5000 12.3 ktok/s 0.346 img/s wait 2% 2.50 GiB 0:00:0" in text()
    bar.show(values | {"lm": 0.75, "denoising": None})
    assert "text 0.7500 image - " in text()
    bar.stop()
