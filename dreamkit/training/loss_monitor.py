"""Sums of the losses, and finiteness of losses and gradients, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dreamkit.distributed import is_main, total, world_size
from dreamkit.model.losses import Losses


@dataclass(frozen=True)
class NotFinite:
    """A loss or gradient that is not finite.

    Attributes:
        step: number of the step, from 1.
        quantity: "loss" or "gradient".
        documents: places in the run of the documents that may cause it.
    """

    step: int
    quantity: Literal["loss", "gradient"]
    documents: tuple[int, ...]


class LossMonitor:
    """Losses and gradients of an interval of steps. The sums are those of finished steps.

    `check`, `sums` and `read` copy values to the host; every process must call these. The other methods do not.

    Attributes:
        start: last step before the interval.
    """

    def __init__(self, device: torch.device) -> None:
        self.start = 0
        # over this process's batches: lm, denoising and their weighted sum; number of steps with labels, with images
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        self._step_sums = torch.zeros_like(self._sums)  # of the unfinished step
        # not checked yet: losses of this process's batches, with their documents, and gradient norms of steps
        self._losses: list[tuple[int, Sequence[int], Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def add(self, step: int, documents: Sequence[int], losses: Losses, counts: Tensor) -> None:
        """Add one batch of `step` with the documents at these places.

        `counts` (2,) are those of the global batch, the divisors of the losses.
        """
        loss = losses.loss.detach()
        self._step_sums[:3] += torch.stack([losses.lm, losses.denoising, loss])
        self._step_sums[3:] = counts > 0
        self._losses.append((step, documents, torch.cat([losses.by_document.float(), loss.float()[None]])))

    def add_gradient(self, step: int, norm: Tensor) -> None:
        """Add the norm () of the gradients of `step`, over all processes."""
        self._norms.append((step, norm.float()))

    def step_loss(self) -> Tensor:
        """Return the loss () of the unfinished step in this process."""
        return self._step_sums[2]

    def check(self) -> NotFinite | None:
        """Check all losses and gradients since the last call; return the first that is not finite, or None."""
        problems: list[NotFinite] = []
        unchecked = [values for *_, values in self._losses] + [norm[None] for _, norm in self._norms]
        if unchecked and not torch.cat(unchecked).isfinite().all():
            problems = [*self._bad_losses(), *self._bad_gradients()]
        self._losses.clear()
        self._norms.clear()
        if world_size() > 1:
            by_process: list[list[NotFinite]] = [[] for _ in range(world_size())]
            dist.all_gather_object(by_process, problems)
            problems = list(chain(*by_process))
        if not problems:
            return None
        first = min(problems, key=_order)
        documents = {number for one in problems if _order(one) == _order(first) for number in one.documents}
        return NotFinite(first.step, first.quantity, tuple(sorted(documents)))

    def _bad_losses(self) -> list[NotFinite]:
        problems = []
        for step, documents, values in self._losses:
            finite = values.isfinite().tolist()
            if not all(finite):
                # The losses of the documents come first, then those of the collator's dummies, then the sum.
                bad = [number for number, is_finite in zip(documents, finite, strict=False) if not is_finite]
                problems.append(NotFinite(step, "loss", tuple(bad or documents)))
        return problems

    def _bad_gradients(self) -> list[NotFinite]:
        bad = {step for step, norm in self._norms if not norm.isfinite()}
        return [
            NotFinite(step, "gradient", tuple(documents))
            for step, documents, _ in self._losses
            if step in bad
        ]

    def end_step(self, dropped: Tensor | None = None) -> None:
        """Count the losses of the step, which is finished, unless the tensor `dropped` () is True."""
        sums = self._step_sums
        self._sums += sums if dropped is None else torch.where(dropped, 0.0, sums)
        self._step_sums.zero_()

    def drop_step(self) -> None:
        """Remove the losses of an unfinished step."""
        self._step_sums.zero_()

    def begin(self, start: int, sums: Sequence[float] = (0.0,) * 5) -> None:
        """Begin an interval after the step `start`, or continue one that has these `sums` over all processes."""
        self.start = start
        self._sums.copy_(torch.tensor(sums, dtype=torch.float64))
        if not is_main():
            self._sums[:3] = 0

    def sums(self) -> list[float]:
        """Return the sums (5,) over all processes. Every process must call this method."""
        sums: list[float] = torch.cat([total(self._sums[:3]), self._sums[3:]]).tolist()
        return sums

    def read(self, step: int) -> dict[str, float | None]:
        """Return the mean of each loss over the steps of the interval, which ends after `step`; begin the next one.

        A loss is None if no step had labels or images.
        """
        lm, denoising, loss, lm_steps, denoising_steps = self.sums()
        steps = step - self.start
        self.begin(step)
        return {
            "lm": lm / lm_steps if lm_steps else None,
            "denoising": denoising / denoising_steps if denoising_steps else None,
            "loss": loss / steps,
        }


def _order(problem: NotFinite) -> tuple[int, bool]:
    """Return the sort key: earlier steps first, and losses before gradients, as a loss names its document."""
    return problem.step, problem.quantity == "gradient"
