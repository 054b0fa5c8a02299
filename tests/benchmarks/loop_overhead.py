"""Time that the training loop adds to forward and backward: `python tests/benchmarks/loop_overhead.py`.

Steps of one model on one batch take turns: of the loop, of forward and backward alone, and of these with clipping and
the optimizer. The batch is made before. A difference is the median over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from benchmarks import race
from benchmarks.turns import Seconds, compared, excess, now, since
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch
from dreamkit.distributed import join
from dreamkit.registry.registry import Registry
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.reading_updates import make_updates
from layouts import TinyDocuments

PASSES, WITH_OPTIMIZER, LOOP = "forward, backward", "the same, clip, optimizer", "loop"
WARM_UP = 2  # rounds that do not count: the optimizer makes its state in the first one


class Turns:
    """Steps that take turns with those of a loop.

    Attributes:
        rounds: seconds of each step of a round, by its name.
    """

    def __init__(self, loop: TrainingLoop, batch: Batch) -> None:
        self.loop, self.batch = loop, batch
        self.rounds: list[dict[str, Seconds]] = []
        # a rate of 0 leaves the weights to the loop
        self.optimizer = torch.optim.AdamW(loop.trained, lr=0.0, fused=True)
        self._begin = now()

    def run_passes(self) -> None:
        self.loop.model(self.batch, counts=self.batch.counts).loss.backward()
        self.optimizer.zero_grad()

    def run_with_optimizer(self) -> None:
        self.loop.model(self.batch, counts=self.batch.counts).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.loop.trained, self.loop.recipe.train.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def take(self) -> None:
        """Count the loop's step, which ends now, and run one of each other kind."""
        times = {LOOP: since(self._begin)}
        steps: list[tuple[str, Callable[[], None]]] = [
            (PASSES, self.run_passes),
            (WITH_OPTIMIZER, self.run_with_optimizer),
        ]
        for name, step in steps if len(self.rounds) % 2 else reversed(steps):
            begin = now()
            step()
            times[name] = since(begin)
        self.rounds.append(times)
        self._begin = now()

    @contextmanager
    def in_loop(self) -> Iterator[None]:
        """Take turns after each step of the loop."""

        def end_step(loop: TrainingLoop, end_step: Any = TrainingLoop.end_step) -> None:
            end_step(loop)
            self.take()

        with patch.object(TrainingLoop, "end_step", end_step):
            yield

    def table(self) -> Iterator[str]:
        """Yield the lines of a Markdown table."""
        rounds = self.rounds[WARM_UP:]
        yield "| step | time, s | CPU time, s | above forward, backward: time | CPU time |"
        yield "|---|---|---|---|---|"
        for name in (PASSES, WITH_OPTIMIZER, LOOP):
            yield f"| {' | '.join([name, *compared(rounds, name, PASSES)])} |"
        wall, cpu = (excess(rounds, LOOP, WITH_OPTIMIZER, kind) for kind in (0, 1))
        yield f"\nThe loop is {wall} above the step with clipping and the optimizer, {cpu} in CPU time."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2, help="documents of an update")
    parser.add_argument("--rounds", type=int, default=20, help="rounds that count")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--small", action="store_true", help="a small model, whose times mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = join()
    registry = Registry.load()
    shape = race.Shape(arguments.documents, 112, 16)
    settings = [f"train.steps={arguments.rounds + WARM_UP}", "data=[{name: pairs, path: none}]"]
    recipe = race.recipe(shape, arguments.small, settings)
    model = build(fit(recipe, registry)).to(device)
    model.set_trainable(recipe.train.trainable)
    data = [TinyDocuments(race.documents(shape))]
    updates = make_updates(recipe, model, data, None, shape.documents)
    batches = updates[0]
    made = patch.object(updates, "loader", lambda first: (list(batches) for _ in count(first)))
    with tempfile.TemporaryDirectory() as folder, made:
        loop = TrainingLoop(model, recipe, device, updates, Path(folder))
        turns = Turns(loop, batches[0].to(device))
        with turns.in_loop():
            loop.train()
        loop.bar.stop()
    print("\n".join(turns.table()))


if __name__ == "__main__":
    main()
