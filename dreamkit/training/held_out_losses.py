"""The losses of a model on held-out documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

import torch

from dreamkit.data.batch import Batch
from dreamkit.data.dataset import Dataset
from dreamkit.data.held_out_order import HeldOutOrder
from dreamkit.data.image_noise import ImageNoise
from dreamkit.data.samples import Policy, Samples
from dreamkit.data.shrinking import least_side
from dreamkit.data.skipped import Skipped
from dreamkit.data.updates import Updates
from dreamkit.distributed import rank, total, world_size
from dreamkit.errors import count
from dreamkit.model.losses import Losses
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.runs.run_paths import HELD_OUT
from dreamkit.training.step_reader import read_update

if TYPE_CHECKING:
    from dreamkit.training.agreement import Agreement


class HeldOutLosses:
    """The losses on held-out documents, which the processes divide among them as they do those of an update.

    The documents are the same in each evaluation, and so are their noise and timesteps. No condition is dropped.

    Args:
        model: the model.
        recipe: the recipe of the run.
        device: the device of this process.
        data_sets: the data sets of `recipe.held_out`.
        agreement: the meeting of the processes.
        computing: context of forward passes, which sets their precision.

    Attributes:
        notes: lines about the last evaluation.
    """

    def __init__(
        self,
        model: DreamModel,
        recipe: Recipe,
        device: torch.device,
        data_sets: Sequence[Dataset],
        agreement: Agreement,
        computing: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model, self.device, self.agreement, self.computing = model, device, agreement, computing
        train = recipe.train
        order = HeldOutOrder(data_sets, train.eval_documents, train.seed)
        noise = ImageNoise(order.seed, model.image_decoder)
        collator = replace(model.collator(recipe), condition_drop=0.0, noise=noise)
        side = least_side(train, model.vision_encoder.spec, model.image_decoder.spec)
        samples = Samples(order, collator.sequencer, Policy.of(train), least_side=side)
        documents = train.update_documents(world_size())
        rounds = replace(train, steps=-(-len(order) // documents))
        self.updates = Updates(samples, collator, rounds, documents, rank=rank(), processes=world_size())
        self.notes: list[str] = []

    def compute(self) -> dict[str, float | None]:
        """Return both losses and their weighted sum; None for a loss without documents, or that is not finite.

        Every process must call this method.

        Raises:
            Interrupted: a signal came, in any process.
            DocumentError: a document cannot be read.
        """
        updates = iter(self.updates.loader())
        idle = self.updates.collator.collate([])
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # losses, labels and images to draw
        bad: list[Skipped] = []

        for _ in range(len(self.updates)):
            batches, skipped, _ = read_update(updates, self.agreement, lambda: idle)
            bad += skipped
            for batch in batches:
                sums += self._sums(batch.to(self.device))
        lm_sum, denoising_sum, labels, images = total(sums).tolist()
        lm = lm_sum / labels if labels else None
        denoising = denoising_sum / images if images else None
        loss = self.model.lm_weight * (lm or 0) + self.model.denoising_weight * (denoising or 0)
        losses = {"lm": lm, "denoising": denoising, "loss": loss}
        not_finite = [name for name, value in losses.items() if value is not None and not isfinite(value)]
        self.notes = [*_skipped_note(bad)]
        if not_finite:
            self.notes.append(
                f"the held-out losses are not finite and null in {HELD_OUT}: {', '.join(not_finite)}; training goes on"
            )
        return losses | dict.fromkeys(not_finite)

    def _sums(self, batch: Batch) -> torch.Tensor:
        """Return the sums of both losses, and the numbers of labels and images to draw, of a batch (4,)."""
        with self.computing():
            losses: Losses = self.model(batch, counts=torch.ones_like(batch.counts))
        return torch.cat([torch.stack([losses.lm, losses.denoising]).double(), batch.counts.double()])


def _skipped_note(skipped: Sequence[Skipped]) -> Iterator[str]:
    """Yield a line about documents that cannot be used, if there are some."""
    if skipped:
        first = min(skipped, key=lambda document: document.place)
        yield (
            f"held_out: {count(len(skipped), 'document')} cannot be used, and others replace them in each "
            f"evaluation; the first one is of held_out.{first.data}: {first.text}"
        )
