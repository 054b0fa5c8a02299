"""Training that is the same in every layout of the global batch: float64, and noise of each image alone.

`torchrun` runs this file in each process of `test_distributed.py`: `layouts.py FOLDER`.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.dataset import Dataset
from dreamkit.data.mixture import Mixture
from dreamkit.data.samples import Samples
from dreamkit.data.sequence import Sequence as Sample
from dreamkit.distributed import is_main, shard, total, whole, world_size
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, TrainingError, with_notes
from dreamkit.interrupts import Interrupted
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from dreamkit.training.run_log import RunLog
from dreamkit.training.trainer import DreamTrainer, training_arguments

TRAINABLE = ["language_model", "visual_projector", "condition_projector", "dream_queries", "new_tokens"]
ADAPTERS = [
    {"target": "language_model", "rank": 2, "use_dora": True},
    {"target": "vision_encoder", "rank": 2},
    {"target": "image_decoder", "rank": 2, "use_rslora": True},
]
STEPS = 3
BAD_SEEDS = (0, 2)  # one seed for each process that gets the bad document first
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


def stop_second_process(reason: str) -> Callable[[Samples, int], Document]:
    """Return a `Samples.document` that has an error or sends a signal at the third document of that process."""
    reads = count(1)

    def read(
        samples: Samples, place: int, attempt: int = 0, read: Callable[..., Document] = Samples.document
    ) -> Document:
        if next(reads) == 3 and dist.get_rank() == 1:
            if reason == "error":
                raise DocumentError("this document is cut")
            os.kill(os.getpid(), signal.SIGTERM)
        return read(samples, place, attempt)

    return read


class FixedNoise(Collator):
    """A collator whose batches have fixed latents, noise and timesteps."""

    def collate(self, sequences: Sequence[Sample]) -> Batch:
        batch = super().collate(sequences)
        images = batch.targets_MCHW.double()
        latents = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8).repeat(1, 4, 1, 1)
        timesteps = (images.flatten(1).abs().sum(1) * 1000).long() % 1000
        pixels = batch.pixels_NCHW.double()
        return replace(
            batch, pixels_NCHW=pixels, latents=latents, noise=(7 * latents).sin(), timesteps=timesteps
        )


def recipe(init: str | None = None, adapters: Sequence[dict[str, Any]] = (), **train_settings: Any) -> Recipe:
    settings = {
        "trainable": TRAINABLE,
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "log_every": 1,
    }
    data = [{"name": "pairs", "path": "unused"}]
    changes = {
        "train": settings | train_settings,
        "data": data,
        "init": init,
        "model.adapters": list(adapters),
    }
    changed = tiny.recipe(**changes)
    return recipe_from_dict(changed, Registry.load(), where="tiny")


def collator(model: DreamModel) -> FixedNoise:
    return FixedNoise(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)


def train_layout(
    out: Path, batch_size: int, accumulation: int, adapters: Sequence[dict[str, Any]] = ()
) -> DreamModel:
    """Train with the same global batches in every layout; return the model.

    Adapters are trained in place of the language model.
    """
    trainable = TRAINABLE[1:] if adapters else TRAINABLE
    settings = recipe(
        adapters=adapters, batch_size=batch_size, accumulation=accumulation, trainable=trainable
    )
    arguments = training_arguments(settings, out)
    model = tiny.model(**{"model.adapters": adapters})
    model.recipe = settings
    model.set_trainable(trainable)
    batches = collator(model)
    documents = STEPS * batch_size * accumulation * world_size()
    samples = Samples(Mixture([TinyDocuments()], [1.0], documents, seed=0), batches.sequencer)
    if world_size() > 1:
        shard(model, arguments.device)
    log = [RunLog(out / "log.jsonl")] if is_main() else []
    DreamTrainer(model, settings, arguments, samples, batches, log).train()
    return model


def one_bad_document() -> list[Document]:
    """Return documents of which one, "bad", contains a tilde."""
    good = [Document((Text(f"good {n}"),), name=f"good {n}") for n in range(5)]
    return [*good, Document((Text("a ~"),), name="bad")]


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
    make = collator(model)
    return [make([text]), make([draws, reads])]


def gradients(model: DreamModel, batches: Sequence[Batch], counts: Tensor) -> dict[str, Tensor]:
    """Return the full gradients of the global losses; `batches` are those of this process."""
    model.requires_grad_(True).train()
    for batch in batches:
        loss = model(batch, counts=counts).loss * world_size()
        loss.backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: whole(grad) for name, grad in named.items() if grad is not None}


def main(folder: Path) -> None:
    device = torch.device("cpu")
    training_arguments(recipe(), folder)  # joins the other process

    model = tiny.model()
    batch = uneven_batches(model)[dist.get_rank()]
    shard(model, device)
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 5, (
        "blocks are sharded on their own"
    )
    actual = gradients(model, [batch], total(batch.counts))
    before = whole(model.dream_queries)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(before, whole(model.dream_queries))
    if is_main():
        save_file(actual, folder / "gradients.safetensors")

    save_checkpoint(train_layout(folder / "2x2", 2, 1), folder / "2x2" / "checkpoint")

    save_checkpoint(train_layout(folder / "2x1x2", 1, 2), folder / "2x1x2" / "checkpoint")

    adapted = train_layout(folder / "adapted", 2, 1, ADAPTERS)
    save_checkpoint(adapted, folder / "adapted" / "checkpoint")

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
            with patch.object(Samples, "document", stop_second_process(reason)):
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
