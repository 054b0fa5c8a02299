"""Both losses, and whether they and the gradients are finite, kept on the device until somebody asks."""

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
    """What was not finite in `step`, and the documents, by their numbers in the data set, that it may come from."""

    step: int
    what: Literal["loss", "gradient"]
    documents: tuple[int, ...]


class LossMonitor:
    """Sums over an interval of steps. `add` and `add_gradient` copy nothing to the host; `check` and `read` do, on all
    processes."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(2, device=device)  # of the two losses, over this process's batches
        self._steps = torch.zeros(2, device=device)  # in which there was anything to read each loss from
        self._last_step = -1
        # not looked at yet: losses of this process's batches, with their documents, and of the gradients of a step
        self._losses: list[tuple[int, Sequence[int], Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def add(self, step: int, documents: Sequence[int], losses: Losses, counts: Tensor) -> None:
        """One batch of `step`, of the documents with these numbers.

        `counts` (2,) are those of the global batch, by which the losses were divided.
        """
        self._sums += torch.stack([losses.lm, losses.denoising]).float()
        if step != self._last_step:
            self._steps += counts > 0
            self._last_step = step
        values = torch.cat([losses.by_document.float(), losses.loss.detach().float()[None]])
        self._losses.append((step, documents, values))

    def add_gradient(self, step: int, norm: Tensor) -> None:
        """The norm () of the gradients of `step`, over all processes."""
        self._norms.append((step, norm.float()))

    def check(self) -> NotFinite | None:
        """Looks at all losses and gradients since the last look, and says where the first is that is not finite."""
        found: list[NotFinite] = []
        seen = [values for *_, values in self._losses] + [norm[None] for _, norm in self._norms]
        if seen and not torch.cat(seen).isfinite().all():
            found = [*self._bad_losses(), *self._bad_gradients()]
        self._losses.clear()
        self._norms.clear()
        if world_size() > 1:
            everyone: list[list[NotFinite]] = [[] for _ in range(world_size())]
            dist.all_gather_object(everyone, found)
            found = list(chain(*everyone))
        if not found:
            return None
        first = min(found, key=_order)
        documents = {number for each in found if _order(each) == _order(first) for number in each.documents}
        return NotFinite(first.step, first.what, tuple(sorted(documents)))

    def _bad_losses(self) -> list[NotFinite]:
        found = []
        for step, documents, values in self._losses:
            finite = values.isfinite().tolist()
            if not all(finite):
                # After the documents comes what the collator added, of weight 0, and then the loss of all together.
                bad = [number for number, fine in zip(documents, finite, strict=False) if not fine]
                found.append(NotFinite(step, "loss", tuple(bad or documents)))
        return found

    def _bad_gradients(self) -> list[NotFinite]:
        bad = {step for step, norm in self._norms if not norm.isfinite()}
        return [
            NotFinite(step, "gradient", tuple(documents))
            for step, documents, _ in self._losses
            if step in bad
        ]

    def read(self) -> dict[str, float | None]:
        """The mean of each loss over the steps since the last reading; None where no step had anything to it."""
        lm, denoising, lm_steps, denoising_steps = torch.cat([total(self._sums), self._steps]).tolist()
        self._sums.zero_()
        self._steps.zero_()
        return {
            "lm": lm / lm_steps if lm_steps else None,
            "denoising": denoising / denoising_steps if denoising_steps else None,
        }


def _order(found: NotFinite) -> tuple[int, bool]:
    """Earlier steps first; where a loss is not finite neither is its gradient, but the loss says whose it is."""
    return found.step, found.what == "gradient"
