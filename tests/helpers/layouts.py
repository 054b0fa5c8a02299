"""Training that is the same in every layout of the global batch.

`torchrun` runs this file in each process of `test_distributed.py`: `layouts.py FOLDER`.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.data.batch import Batch
from dreamkit.data.dataset import Dataset
from dreamkit.data.mixture import Mixture
from dreamkit.data.samples import Samples
from dreamkit.distributed import is_main, join, total, whole, world_size
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, TrainingError, with_notes
from dreamkit.interrupts import Interrupted
from dreamkit.model.losses import Losses
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training import loop
from dreamkit.training.loss_monitor import LossMonitor
from dreamkit.training.optimizer import make_optimizer, update
from dreamkit.training.run import TrainResult, train_recipe
from dreamkit.training.sharding import shard
from dreamkit.training.step_guard import StepGuard

TRAINABLE = ["language_model", "visual_projector", "condition_projector", "dream_queries", "new_tokens"]
ADAPTERS = [
    {"target": "language_model", "rank": 2, "use_dora": True},
    {"target": "vision_encoder", "rank": 2},
    {"target": "image_decoder", "rank": 2, "use_rslora": True},
]
STEPS = 3
STEPS_OF = {"float32": 5, "float64": 50}  # in a measured run
GLOBAL_BATCH = 5  # of these runs; not a multiple of the processes
FIRST_GRADIENT = "gradient.safetensors"
TOLERANCE = 1e-12  # of weights after `STEPS`, for float64 sums in another order


class TinyDocuments(Dataset):
    """A data set of the documents of `tiny`."""

    def __init__(self, documents: Sequence[Document] | None = None) -> None:
        self.documents = documents or tiny.documents()

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        return self.documents[index]


class BadDocuments(TinyDocuments):
    """The documents of `tiny`, of which some are bad."""

    def __init__(self, bad: Sequence[int] = (1, 3)) -> None:
        super().__init__()
        self.bad = bad

    def __getitem__(self, index: int) -> Document:
        if index in self.bad:
            raise DocumentError(f"/data/a.tar!{index}: expected an image, got a text of {index} letters")
        return super().__getitem__(index)


def stop_second_process(reason: str) -> Callable[[Samples, int], Callable[[], Document]]:
    """Return a `Samples._read` that has an error or sends a signal at the third document of that process."""
    reads = count(1)

    def reader(
        samples: Samples, place: int, attempt: int = 0, reader: Callable[..., Any] = Samples._read
    ) -> Callable[[], Document]:
        read = reader(samples, place, attempt)

        def stop() -> Document:
            if reason == "error":
                raise DocumentError("this document is cut")
            os.kill(os.getpid(), signal.SIGTERM)
            return read()

        return stop if next(reads) == 3 and dist.get_rank() == 1 else read

    return reader


def recipe(
    init: str | None = None,
    adapters: Sequence[dict[str, Any]] = (),
    condition_drop: float = 0.0,
    **train_settings: Any,
) -> Recipe:
    settings = {"trainable": TRAINABLE, "steps": STEPS, "learning_rate": 1e-2, "log_every": 1}
    if "global_batch" not in train_settings:
        settings["batch_size"] = 2
    data = [{"name": "pairs", "path": "unused"}]
    changes = {
        "train": settings | train_settings,
        "data": data,
        "init": init,
        "loss": {"condition_drop": condition_drop},
        "model.adapters": list(adapters),
    }
    changed = tiny.recipe(**changes)
    return recipe_from_dict(changed, Registry.load(), where="tiny")


def train_layout(
    out: Path, batch_size: int, accumulation: int, adapters: Sequence[dict[str, Any]] = ()
) -> DreamModel:
    """Train in float64 with the same global batches in every layout; return the model.

    Adapters are trained in place of the language model.
    """
    settings = recipe(
        adapters=adapters,
        batch_size=batch_size,
        accumulation=accumulation,
        trainable=TRAINABLE[1:] if adapters else TRAINABLE,
        precision="float64",
        seed=1,  # each batch has an image to draw, whose loss is compared
    )
    return train_recipe(settings, Registry.load(), out, datasets=[TinyDocuments()]).model


def measured_run(out: Path, precision: str, **settings: Any) -> None:
    """Train a run of the tiny documents in the folder `out`, as `measure` does.

    An update has `GLOBAL_BATCH` documents, or those of other `settings`.
    """
    if "batch_size" not in settings:
        settings["global_batch"] = GLOBAL_BATCH
    measure(recipe(condition_drop=0.5, precision=precision, **settings), out, [TinyDocuments()])


def digits_run(out: Path, **settings: Any) -> None:
    """Train a run of the digits of stage II in float32 in the folder `out`, as `measure` does."""
    settings |= {"global_batch": GLOBAL_BATCH, "log_every": 1}
    overrides = [f"train.{key}={json.dumps(value)}" for key, value in settings.items()]
    measure(load_recipe("digits/stage2", overrides, Registry.load()), out)


def measure(recipe: Recipe, out: Path, datasets: Sequence[Dataset] | None = None) -> None:
    """Train `STEPS_OF[precision]` steps in the folder `out`; write the first gradient into `FIRST_GRADIENT`.

    The gradient is that of all trainable tensors together, before it is clipped.
    """
    gradients: list[Tensor] = []
    clip = loop.clip_gradients

    def record(trained: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        if not gradients:
            each = [parameter.grad for parameter in trained if parameter.grad is not None]
            gradients.append(torch.cat([whole(gradient).flatten() for gradient in each]))
        return clip(trained, max_norm)

    recipe = replace(recipe, train=replace(recipe.train, steps=STEPS_OF[recipe.train.precision]))
    with patch.object(loop, "clip_gradients", record):
        train_recipe(recipe, Registry.load(), out, datasets=datasets)
    if is_main():
        save_file({"gradient": gradients[0]}, out / FIRST_GRADIENT)


def assert_same_run(actual: Path, expected: Path, precision: str) -> None:
    """Compare the losses, the first gradient and the figures of two measured runs."""
    logs = [
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (actual, expected)
    ]
    assert [len(log) for log in logs] == [STEPS_OF[precision]] * 2
    bound = {"float32": 1e-6, "float64": 1e-8}[precision]
    for entry, other in zip(*logs, strict=True):
        for name in ("lm", "denoising", "loss"):
            same = None if other[name] is None else pytest.approx(other[name], rel=bound, abs=0)
            assert entry[name] == same, (other["step"], name)
        norms = [name for name in other if name.startswith("grad_norm.")]
        assert entry.keys() == other.keys() and norms
        for name in norms:  # the first ones within the bound, as gradients; rounding grows
            assert entry[name] == pytest.approx(other[name], rel=bound * other["step"] ** 2, abs=bound), name
        for name in ("tokens_per_second", "images_per_second"):
            each = [line[name] / line["steps_per_second"] for line in (entry, other)]
            assert each[0] == pytest.approx(each[1]) and each[0] > 0, name
    first, second = (load_file(out / FIRST_GRADIENT)["gradient"] for out in (actual, expected))
    assert (first - second).norm() <= bound * second.norm() and second.norm() > 0


def one_bad_document() -> list[Document]:
    """Return documents of which one, "bad", contains a tilde."""
    good = [Document((Text(f"good {n}"),), name=f"good {n}") for n in range(5)]
    return [*good, Document((Text("a ~"),), name="bad")]


def bad_seed(*places: int) -> int:
    """Return the least seed with which the first bad document of `one_bad_document` is at one of `places`."""
    documents = [TinyDocuments(one_bad_document())]
    for seed in count():
        mixture = Mixture(documents, [1.0], seed)
        if next(place for place in count() if mixture[place].name == "bad") in places:
            return seed
    raise AssertionError("no such seed")


BAD_SEEDS = (bad_seed(2), bad_seed(3))  # one seed for each process that gets the bad document first


def embedding(model: DreamModel) -> nn.Module:
    return model.language_model.model.get_input_embeddings()


def make_losses_nan(model: DreamModel) -> None:
    """Make every loss after a tilde NaN."""
    (tilde,) = model.language_model.tokenize("~")
    with torch.no_grad():
        embedding(model).weight[tilde] = float("nan")


def uneven_batches(model: DreamModel) -> list[Batch]:
    """Return a batch of text, and one with images to read and to draw."""
    draws, reads, text, *_ = tiny.documents()
    make = model.collator(recipe(precision="float64"))
    sequences = [
        replace(make.sequencer.sequence(document), place=place)
        for place, document in enumerate((text, draws, reads))
    ]
    return [make.collate(sequences[:1]), make.collate(sequences[1:])]


def gradients(model: DreamModel, batches: Sequence[Batch], counts: Tensor) -> dict[str, Tensor]:
    """Return the full gradients of the global losses; `batches` are those of this process."""
    model.requires_grad_(True).train()
    for batch in batches:
        loss = model(batch, counts=counts).loss * world_size()
        loss.backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: whole(grad) for name, grad in named.items() if grad is not None}


def run_bad_steps(device: torch.device) -> None:
    """Run steps that are not finite in one process; check that all processes keep weights and optimizer, bit by bit."""
    model = tiny.model()
    batch = uneven_batches(model)[dist.get_rank()]
    model.set_trainable(TRAINABLE)
    shard(model, device, recipe().train)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = recipe(weight_decay=0.1)
    optimizer, monitor = (
        make_optimizer(parameter_groups(model, settings), settings.train),
        LossMonitor(device),
    )

    def state() -> list[Tensor]:
        values = [*trained, *(value for each in optimizer.state.values() for value in each.values())]
        local = (value.to_local() if isinstance(value, DTensor) else value for value in values)
        return [tensor.detach().clone() for tensor in local]

    def step(gradient: float, loss: float) -> list[Tensor]:
        losses = model(batch, counts=total(batch.counts))
        (losses.loss * gradient).backward()
        monitor.add(1, batch.places, losses._replace(loss=losses.loss + loss), batch.counts)
        norm = loop.clip_gradients(trained, 1.0)
        guard = StepGuard(Path("unused"), settings.train, device)
        update(optimizer, guard.judge(1, [batch], monitor.step_loss(), norm), 0)
        optimizer.zero_grad()
        monitor.drop_step()
        return state()

    good, inf, is_bad = step(1.0, 0.0), float("inf"), dist.get_rank() == 1
    for gradient, loss in [(inf, 0.0), (1.0, inf)]:
        after = step(gradient if is_bad else 1.0, loss if is_bad else 0.0)
        assert len(after) == len(good) and all(map(torch.equal, after, good))
    assert not all(map(torch.equal, step(1.0, 0.0), good))


@contextmanager
def large_gradients() -> Iterator[None]:
    """Multiply the gradient of a batch with a tilde by a large number; its loss stays."""

    def forward(model: DreamModel, batch: Batch, forward: Any = DreamModel.forward, **named: Any) -> Losses:
        losses = forward(model, batch, **named)
        (tilde,) = model.language_model.tokenize("~")
        scale = torch.where((batch.input_ids_BT == tilde).any(), 1e3, 1.0)
        loss = losses.loss.detach()
        return losses._replace(loss=loss + scale * (losses.loss - loss))

    with patch.object(DreamModel, "forward", forward):
        yield


def spike_run(out: Path, *, resume: bool = False, on_log: Any = None, **settings: Any) -> TrainResult:
    """Train six updates of two documents, of which the third and a later one are spikes."""
    settings = {"steps": 6, "spike_factor": 8.0, "seed": bad_seed(4, 5), "global_batch": 2} | settings
    data = [TinyDocuments(one_bad_document())]
    with patch("dreamkit.training.step_guard.LEAST", 2), large_gradients():
        return train_recipe(
            recipe(**settings), Registry.load(), out, datasets=data, resume=resume, on_log=on_log
        )


def main(folder: Path) -> None:
    device = join()
    if (folder / "checkpoints").is_dir():
        again = recipe(save_every=1, sharding="none")  # the first run was sharded
        train_recipe(again, Registry.load(), folder, datasets=[TinyDocuments()], resume=True)
        dist.destroy_process_group()
        return

    model = tiny.model()
    batch = uneven_batches(model)[dist.get_rank()]
    shard(model, device, recipe().train)
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 5, (
        "blocks are sharded on their own"
    )
    actual = gradients(model, [batch], total(batch.counts))
    before = whole(model.dream_queries)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(before, whole(model.dream_queries))
    if is_main():
        save_file(actual, folder / "gradients.safetensors")

    run_bad_steps(device)
    spike_run(folder / "spikes")
    try:
        spike_run(folder / "spike", on_spike="stop")
    except TrainingError as error:
        (folder / f"spike.{dist.get_rank()}.txt").write_text(with_notes(error))
    train_layout(folder / "2x2", 2, 1)
    train_layout(folder / "2x1x2", 1, 2)
    train_layout(folder / "adapted", 2, 1, ADAPTERS)

    with patch.dict(os.environ, WANDB_MODE="offline", WANDB_SILENT="true"):
        measured_run(folder / "float32", "float32", workers=2, trackers=["tensorboard", "wandb"])
    # three forward passes in the first process and two in the second one, which is idle in the third
    measured_run(folder / "float64", "float64", packing=False, micro_batch=1)
    digits_run(folder / "digits", micro_batch=1)

    for seed in BAD_SEEDS:
        settings = recipe(steps=6, batch_size=1, log_every=6, seed=seed)
        model = build(fit(settings, Registry.load()))
        make_losses_nan(model)
        try:
            train_recipe(
                settings,
                Registry.load(),
                folder / f"bad-{seed}",
                model=model,
                datasets=[TinyDocuments(one_bad_document())],
            )
        except TrainingError as error:
            (folder / f"bad-{seed}.{dist.get_rank()}.txt").write_text(str(error))

    for reason in ("error", "signal"):
        left = folder / f"left by {reason}"
        try:
            with patch.object(Samples, "_read", stop_second_process(reason)):
                train_recipe(recipe(on_error="stop"), Registry.load(), left, datasets=[TinyDocuments()])
        except (DocumentError, TrainingError, Interrupted) as error:
            (folder / f"{left.name}.{dist.get_rank()}.txt").write_text(with_notes(error))
        train_recipe(recipe(), Registry.load(), left, datasets=[TinyDocuments()], resume=True)

    train_recipe(recipe(), Registry.load(), folder / "skipping", datasets=[BadDocuments()])
    try:
        with patch("dreamkit.data.skipped.UNLIMITED", 2):
            train_recipe(recipe(), Registry.load(), folder / "too many", datasets=[BadDocuments()])
    except TrainingError as error:
        (folder / f"too many.{dist.get_rank()}.txt").write_text(with_notes(error))

    try:
        train_recipe(recipe(global_batch=1), Registry.load(), folder / "few", datasets=[TinyDocuments()])
    except TrainingError as error:
        (folder / f"few.{dist.get_rank()}.txt").write_text(str(error))

    straight, resumed = folder / "straight", folder / "resumed"
    settings = recipe(save_every=1)
    train_recipe(settings, Registry.load(), straight, datasets=[TinyDocuments()])
    if is_main():
        shutil.copytree(straight / "checkpoints/step-1", resumed / "checkpoints/step-1")
    dist.barrier()
    train_recipe(settings, Registry.load(), resumed, datasets=[TinyDocuments()], resume=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
