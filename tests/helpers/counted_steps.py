"""Counts of the steps of two processes: reads of values by the host, and collective operations.

`torchrun` runs this file in each process of `test_steps_of_two.py`: `counted_steps.py FOLDER`. It writes the counts of
each run and process into `RUN.RANK.json`.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import layouts
from dreamkit.distributed import join, rank
from dreamkit.registry.registry import Registry
from dreamkit.training.agreement import Agreement
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.run import train_recipe
from host_reads import HostReads
from watched_steps import WatchSteps

STEPS = 4
RUNS: dict[str, dict[str, Any]] = {  # settings of `train`
    "one pass": {},
    "three passes": {"global_batch": 6, "micro_batch": 1, "packing": False},
    "saved": {"save_every": 1},
}
WAITS = "_wrap_tensor_autograd"  # moves nothing


class Collectives(TorchDispatchMode):
    """A mode that counts collective operations by their names in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # the mode then gets the operators on its shards
        name = func._overloadpacket.__name__
        if func.namespace in ("c10d", "_c10d_functional") and name not in ("wait_tensor", WAITS):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count_steps(out: Path, **settings: Any) -> dict[str, Any]:
    """Train `STEPS` steps in the folder `out`; return the counts of all steps, without those of logging and saving."""
    in_steps, in_meetings = Collectives(), Collectives()

    def counts_steps(tensor: Tensor) -> bool:
        """Return True for the optimizer's numbers of steps, which are on the host."""
        return any(tensor is state.get("step") for state in steps.loops[0].optimizer.state.values())

    host_reads = HostReads(counts_steps)

    @contextmanager
    def watch() -> Iterator[None]:
        with host_reads.watch(), in_steps:
            yield

    def call(*args: Any, call: Any = Agreement.call, **named: Any) -> Any:
        with in_meetings:
            return call(*args, **named)

    def train(*args: Any, train: Any = TrainingLoop.train, **named: Any) -> None:
        train(*args, **named)
        meetings.update(in_meetings.counts)  # there is one more at the end of the run

    meetings: Counter[str] = Counter()
    steps = WatchSteps(watch)
    recipe = layouts.recipe(steps=STEPS, **settings)
    counting = patch.object(Agreement, "call", call), patch.object(TrainingLoop, "train", train)
    with counting[0], counting[1], steps.watching():
        train_recipe(recipe, Registry.load(), out, datasets=[layouts.TinyDocuments()])
    assert steps.steps == STEPS and host_reads.operators > 1000
    return {"reads": host_reads.reads, "step": in_steps.counts, "meeting": meetings}


def main(folder: Path) -> None:
    join()
    for name, settings in RUNS.items():
        counts = count_steps(folder / name, **settings)
        (folder / f"{name}.{rank()}.json").write_text(json.dumps(counts))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
