"""Sums of both losses, and finiteness of losses and gradients, kept on the device until they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from dreamkit.distributed import total, world_size
from dreamkit.model.model import Losses


@dataclass(frozen=True)
class NotFinite:
    """A loss or gradient that is not finite.

    Attributes:
        step: number of the step, from 1.
        quantity: "loss" or "gradient".
        documents: numbers in the mixture of the documents that may cause it.
    """

    step: int
    quantity: Literal["loss", "gradient"]
    documents: tuple[int, ...]


class LossMonitor:
    """Losses and gradients of an interval of steps.

    `add` and `add_gradient` copy nothing to the host. `check` and `read` do; every process must call them.
    """

    def __init__(self, device: torch.device) -> None:
        # of the two losses, over this process's batches
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._steps = torch.zeros_like(self._sums)  # number of steps with labels, and with images to draw
        self._last_step = -1
        # not checked yet: losses of this process's batches, with their documents, and gradient norms of steps
        self._losses: list[tuple[int, Sequence[int], Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def add(self, step: int, documents: Sequence[int], losses: Losses, counts: Tensor) -> None:
        """Add one batch of `step` with the documents of these numbers.

        `counts` (2,) are those of the global batch, the divisors of the losses.
        """
        self._sums += torch.stack([losses.lm, losses.denoising])
        if step != self._last_step:
            self._steps += counts > 0
            self._last_step = step
        values = torch.cat([losses.by_document.float(), losses.loss.detach().float()[None]])
        self._losses.append((step, documents, values))

    def add_gradient(self, step: int, norm: Tensor) -> None:
        """Add the norm () of the gradients of `step`, over all processes."""
        self._norms.append((step, norm.float()))

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

    def local_sums(self) -> Tensor:
        """Return the sums (4,) since the last `read`: both losses in this process, and numbers of their steps."""
        return torch.cat([self._sums, self._steps])

    def set_local_sums(self, sums: Tensor) -> None:
        """Set the sums to earlier ones."""
        self._sums.copy_(sums[:2])
        self._steps.copy_(sums[2:])

    def sums(self) -> list[float]:
        """Return the sums (4,) over all processes. Every process must call this method."""
        sums: list[float] = torch.cat([total(self._sums), self._steps]).tolist()
        return sums

    def read(self) -> dict[str, float | None]:
        """Return the mean of each loss over the steps since the last call; None if no step had labels or images."""
        lm, denoising, lm_steps, denoising_steps = self.sums()
        self._sums.zero_()
        self._steps.zero_()
        return {
            "lm": lm / lm_steps if lm_steps else None,
            "denoising": denoising / denoising_steps if denoising_steps else None,
        }


def _order(problem: NotFinite) -> tuple[int, bool]:
    """Return the sort key: earlier steps first, and losses before gradients, as a loss names its document."""
    return problem.step, problem.quantity == "gradient"
