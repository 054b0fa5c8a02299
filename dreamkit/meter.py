"""Both losses and every document's finiteness, kept on the device until somebody asks."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from dreamkit.batch import Batch
from dreamkit.distributed import total, world_size
from dreamkit.errors import TrainingError
from dreamkit.model import Losses


class Meter:
    """Sums over an interval of steps. `add` copies nothing to the host; `check` and `read` do, on all processes."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)  # of the two losses, over this process's batches
        self._steps = torch.zeros(2, device=device)  # in which there was anything to read each loss from
        self._last_step = -1
        self._unchecked: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, batch: Batch, losses: Losses, counts: Tensor) -> None:
        """One batch of `step`; `counts` (2,) are those of the global batch, by which the losses were divided."""
        self._sums += torch.stack([losses.lm, losses.denoising]).float()
        if step != self._last_step:
            self._steps += counts > 0
            self._last_step = step
        values = torch.cat([losses.by_document.float(), losses.loss.detach().float()[None]])
        self._unchecked.append((step, batch.documents, values))

    def check(self) -> None:
        """Looks at every loss since the last look.

        Raises:
            TrainingError: one is not finite; step and documents are named, on every process.
        """
        found = None
        if self._unchecked and not torch.cat([values for _, _, values in self._unchecked]).isfinite().all():
            step, names, values = next(each for each in self._unchecked if not each[2].isfinite().all())
            losses = dict(zip(names, values.tolist(), strict=False))
            bad = {name: loss for name, loss in losses.items() if not math.isfinite(loss)}
            found = step, bad or losses
        self._unchecked.clear()
        everyone = [found]
        if world_size() > 1:
            everyone = [None] * world_size()
            dist.all_gather_object(everyone, found)
        bad_steps = [each for each in everyone if each is not None]
        if bad_steps:
            step, bad = min(bad_steps, key=lambda each: each[0])
            named = ", ".join(f"'{name}' ({loss})" for name, loss in bad.items())
            raise TrainingError(
                f"step {step}: the loss is not finite: {named}; nothing was saved after it. Look at that document, "
                "or lower train.learning_rate or train.max_grad_norm"
            )

    def read(self) -> dict[str, float | None]:
        """The mean of each loss over the steps since the last reading; None where no step had anything to it.

        Raises:
            TrainingError: as `check`.
        """
        self.check()
        lm, denoising, lm_steps, denoising_steps = torch.cat([total(self._sums), self._steps]).tolist()
        self._sums.zero_()
        self._steps.zero_()
        return {
            "lm": lm / lm_steps if lm_steps else None,
            "denoising": denoising / denoising_steps if denoising_steps else None,
        }
