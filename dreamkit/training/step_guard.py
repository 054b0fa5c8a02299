"""Decisions on the device about steps that must change nothing: those that are not finite, and spikes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dreamkit.data.batch import Batch
from dreamkit.distributed import gathered, is_main, total
from dreamkit.errors import count, excerpt, printable
from dreamkit.recipe.sections import TrainSection
from dreamkit.runs.log_entries import read_entries
from dreamkit.storage.writing import append_text, write_text

WINDOW: Final = 100  # norms that the median is taken of
LEAST: Final = 20  # norms before a step can be a spike
MAX_NAMES: Final = 10  # documents in one error


@dataclass(frozen=True)
class Spike:
    """A step whose gradient norm was above `train.spike_factor` times the median of those before it.

    `documents` are the names of its documents, in their order.
    """

    step: int
    norm: float
    median: float
    documents: tuple[str, ...]


class StepGuard:
    """A guard that decides on the device which steps change neither weights nor optimizer state.

    These are steps that are not finite and spikes. From the first step on that ends the run, which the host reads later
    with `read`, all do: the weights stay those of the step before it. The decisions are the same in all processes.

    Attributes:
        halted: tensor () that is True from the first step on that ends the run.
        spikes: spikes that were skipped since the start of the run; in the main process only.
    """

    def __init__(self, path: Path, train: TrainSection, device: torch.device) -> None:
        self.path, self.factor, self.stops = path, train.spike_factor, train.on_spike == "stop"
        self.spikes: list[Spike] = []
        self.halted = torch.zeros((), dtype=torch.bool, device=device)
        # norms of the last steps, in a ring; missing ones are last in their order
        self._norms = torch.full((WINDOW,), torch.inf, dtype=torch.float64, device=device)
        self._count = 0
        # not read yet: steps, their documents by place in this process, and norm, median, spike and halt on the device
        self._unread: list[tuple[int, list[tuple[int, str]], Tensor]] = []

    def begin(self, step: int, norms: Sequence[float]) -> None:
        """Continue after `step` with the norms in its resume point, oldest first."""
        self._count = len(norms)
        self._norms[: len(norms)] = torch.tensor(norms, dtype=torch.float64)
        if is_main() and self.path.is_file():
            self.spikes = [Spike(**each) for each in read_entries(self.path, _entry) if each["step"] <= step]
            write_text(self.path, "".join(map(_line, self.spikes)))

    def judge(self, step: int, batches: Sequence[Batch], loss: Tensor, norm: Tensor) -> Tensor:
        """Return 1 () if the step must change nothing, else 0.

        `loss` () is the loss of this process, which can be infinite though its gradient is finite, and `norm` () the
        norm of the gradients. Nothing is copied to the host. Every process must call this method.
        """
        norm = norm.double()
        size, slot = min(self._count, WINDOW), self._count % WINDOW
        median = self._norms.sort().values[max(0, size - 1) // 2]
        is_spike = torch.zeros_like(self.halted)
        if self.factor is not None and size >= LEAST:
            is_spike = norm > self.factor * median
        is_bad = ~(loss.isfinite() & norm.isfinite())
        flags = total(torch.stack([is_bad, is_spike]).float())  # no process decides alone
        is_bad, is_spike = flags > 0
        is_spike = is_spike & ~is_bad & ~self.halted
        self.halted = self.halted | is_bad | (is_spike & self.stops)
        self._norms[slot] = torch.where(self.halted, self._norms[slot], norm)
        self._count += 1
        names = [each for batch in batches for each in zip(batch.places, batch.documents, strict=False)]
        self._unread.append(
            (step, names, torch.stack([norm, median, is_spike.double(), self.halted.double()]))
        )
        return (self.halted | is_spike).float()

    def read(self) -> tuple[int | None, Spike | None]:
        """Read the decisions since the last call: the step that ends the run, and the spike that does, or None.

        Skipped spikes are added to the list and the file. Every process must call this method.
        """
        values = torch.stack([each for *_, each in self._unread]).tolist() if self._unread else []
        halt = stop = None
        for (step, names, _), (norm, median, is_spike, is_halted) in zip(self._unread, values, strict=True):
            if is_spike:
                spike = Spike(step, norm, median, _all_names(names))
                if self.stops:
                    stop = spike
                elif is_main():
                    self.spikes.append(spike)
                if is_main():
                    append_text(self.path, _line(spike))
            if is_halted:
                halt = step
                break
        self._unread.clear()
        return halt, stop

    def norms(self) -> tuple[float, ...]:
        """Return the norms for a resume point, oldest first. `read` must have been called since the last step."""
        slot = self._count % WINDOW
        ordered = self._norms[: self._count] if self._count <= WINDOW else self._norms.roll(-slot)
        return tuple(ordered.tolist())

    def rewind(self, steps: int) -> None:
        """Forget the last `steps` steps, which came after a halt and left no norm."""
        self._count -= steps

    def error(self, spike: Spike) -> str:
        """Return the error of a spike that ends the run."""
        listed = ", ".join(f"'{printable(name)}'" for name in spike.documents[:MAX_NAMES])
        rest = len(spike.documents) - MAX_NAMES
        more = f" and {rest} more" if rest > 0 else ""
        return (
            f"step {spike.step}: expected a gradient norm of at most {self.factor:g} times the median of the norms "
            f"before, {spike.median:.4g}, got {spike.norm:.4g}: {listed}{more}; all are listed in {self.path}; check "
            "these documents, or add train.on_spike=skip or a larger train.spike_factor"
        )

    def notes(self) -> list[str]:
        """Return a line about skipped spikes, if there are some."""
        if not self.spikes:
            return []
        return [
            f"skipped {count(len(self.spikes), 'step')} with a spike of the gradient norm, listed in {self.path}"
        ]


def _all_names(names: list[tuple[int, str]]) -> tuple[str, ...]:
    """Return the names of the documents of all processes, in the order of their places."""
    return tuple(name for _, name in sorted(chain(*gathered(names))))


def _line(spike: Spike) -> str:
    return json.dumps(asdict(spike)) + "\n"


def _entry(line: bytes) -> dict[str, Any]:
    """Return the spike in a line.

    Raises:
        ValueError, RecursionError: the line has another form.
    """
    entry = json.loads(line.decode())
    types = {"step": int, "norm": float, "median": float, "documents": list}
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != types:
        raise ValueError(f"expected a spike with {', '.join(types)}, got {excerpt(line.decode())}")
    if not all(isinstance(name, str) for name in entry["documents"]):
        raise ValueError(f"expected names of documents, got {excerpt(line.decode())}")
    return {**entry, "documents": tuple(entry["documents"])}
