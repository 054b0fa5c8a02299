"""The measured figures of a line of the log: gradient norms of the parts, speeds and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dreamkit.data.batch import Batch
from dreamkit.distributed import gathered, is_first_replica, local
from dreamkit.model.model import DreamModel

MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024  # bytes


class Figures:
    """Figures of the steps since the line before, over all processes.

    Between two lines, the host counts what it reads, and asks neither its device nor other processes.

    Args:
        model: the model, with its trainable parts set; sharded if several processes train it.
        device: the device of this process.
    """

    def __init__(self, model: DreamModel, device: torch.device) -> None:
        self.parts = trained_parts(model)
        self.device = device
        self._squares = torch.zeros(len(self.parts), dtype=torch.float64)

    def begin(self, step: int) -> None:
        """Begin to count after `step`."""
        self._start = time.monotonic(), step
        self._tokens = self._images = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def add(self, batches: Sequence[Batch]) -> None:
        """Count the documents of a step of this process."""
        self._tokens += sum(batch.tokens for batch in batches)
        self._images += sum(batch.images for batch in batches)

    def add_gradients(self) -> None:
        """Add the gradients of the step whose line comes next, before they are clipped. Nothing is copied to the host.

        Each process computes the sum of squares of the slices that no other process adds.
        """
        self._squares = torch.stack([_squares(part, self.device) for part in self.parts.values()])

    def read(self, step: int) -> dict[str, float]:
        """Return the figures of a line, and begin to count after `step`. Every process must call this method."""
        before, first = self._start
        own = [*self._squares.tolist(), self._tokens, self._images], self._peak()
        sums, peaks = zip(*gathered(own), strict=True)
        *squares, tokens, images = map(sum, zip(*sums, strict=True))
        self.begin(step)
        seconds = self._start[0] - before
        norms = {f"grad_norm.{name}": each**0.5 for name, each in zip(self.parts, squares, strict=True)}
        return norms | {
            "steps_per_second": (step - first) / seconds,
            "tokens_per_second": tokens / seconds,
            "images_per_second": images / seconds,
            "memory": max(peaks),
        }

    def _peak(self) -> int:
        """Return the peak in bytes: of what the device has allocated, or of the resident set of a process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def trained_parts(model: DreamModel) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by their part, in the order of `DreamModel.TRAINABLE`.

    An adapter belongs to the part that it adapts. The rows of added tokens belong to `new_tokens` alone, so that each
    parameter is in one part.
    """
    parts: dict[str, list[nn.Parameter]] = {name: [] for name in model.TRAINABLE}
    rows = {id(row) for row in model.language_model.added_token_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "new_tokens" if id(parameter) in rows else name.partition(".")[0]
            parts[part].append(parameter)
    return {name: parameters for name, parameters in parts.items() if parameters}


def _squares(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Return the sum () of squares of the gradients that this process holds, without those that another one adds."""
    gradients = [each.grad for each in parameters if each.grad is not None and is_first_replica(each)]
    norm = get_total_norm([local(gradient) for gradient in gradients])
    return norm.to(device, torch.float64) ** 2
