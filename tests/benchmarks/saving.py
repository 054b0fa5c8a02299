"""Times and memory of resume points: `python tests/benchmarks/saving.py`, or under `torchrun --nproc-per-node 2`.

A run saves resume points, and a longer one continues from the last. It prints how long `save` holds up the steps, how
long a point takes to be complete, and how much memory of the main process saving and resuming take.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tiny
from anonymous_memory import Peak
from dreamkit.distributed import barrier, is_main, join, world_size
from dreamkit.errors import count
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.run_paths import resume_point
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.run import train_recipe
from layouts import TinyDocuments

LARGE = {  # 46 M parameters: 185 MB of weights, and twice that of the optimizer
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
}
SECONDS = 0.005  # between two looks for a finished folder
SAVE_EVERY = 8


class Watch:
    """Times of a run's steps and resume points, by the wall clock.

    Attributes:
        first_step: time of the begin of the first step.
        loading: growth of the memory of this process until then, at its peak.
        steps: begin and end of each step, without logging and saving.
        saves: begin of `save`, its end, and the time at which the folder has its name, of each point.
        state: bytes of the trained weights and the optimizer's state.
    """

    def __init__(self) -> None:
        self.first_step = 0.0
        self.loading = 0
        self.steps: list[tuple[float, float]] = []
        self.saves: list[list[float]] = []
        self.state = 0
        self._threads: list[threading.Thread] = []

    @contextmanager
    def watching(self, peak: Peak) -> Iterator[None]:
        begins: list[float] = []

        def begin(loop: TrainingLoop, *arguments: Any, begin: Any = TrainingLoop.begin) -> Any:
            updates = begin(loop, *arguments)
            self.first_step = time.perf_counter()
            self.loading = peak.most - peak.before
            return updates

        def read(loop: TrainingLoop, *arguments: Any, read: Any = TrainingLoop.read) -> Any:
            begins.append(time.perf_counter())
            return read(loop, *arguments)

        def end_step(loop: TrainingLoop, end_step: Any = TrainingLoop.end_step) -> None:
            end_step(loop)
            self.steps.append((begins[-1], time.perf_counter()))

        def save(loop: TrainingLoop, *arguments: Any, save: Any = TrainingLoop.save, **named: Any) -> None:
            times = [time.perf_counter()]
            self.saves.append(times)
            folder = resume_point(loop.out, loop.progress.step)
            thread = threading.Thread(target=self._wait_for, args=(folder, times))
            thread.start()
            self._threads.append(thread)
            save(loop, *arguments, **named)
            times.insert(1, time.perf_counter())
            self.state = _state_bytes(loop)

        methods = {"begin": begin, "read": read, "end_step": end_step, "save": save}
        with patch.multiple(TrainingLoop, **methods):
            yield
        for thread in self._threads:
            thread.join()

    @staticmethod
    def _wait_for(folder: Path, times: list[float]) -> None:
        while not folder.exists():
            time.sleep(SECONDS)
        times.append(time.perf_counter())

    def lines(self) -> Iterator[str]:
        """Yield rows of a Markdown table: the medians over all points."""
        steps: dict[bool, list[float]] = {True: [], False: []}
        for begin, end in self.steps[1:]:  # the first one makes the optimizer's state
            is_beside = any(
                saved < end and begin < complete - 2 * SECONDS for saved, _, complete in self.saves
            )
            steps[is_beside].append(end - begin)
        yield f"| trained weights and optimizer state | {self.state / 1e6:.0f} MB |"
        yield f"| a step | {median(steps[False]):.2f} s |"
        if steps[True]:
            yield f"| a step while a point is written | {median(steps[True]):.2f} s |"
        yield f"| `save` holds up the steps | {median(end - begin for begin, end, _ in self.saves):.2f} s |"
        yield f"| until the point is complete | {median(complete - begin for begin, _, complete in self.saves):.2f} s |"


def _state_bytes(loop: TrainingLoop) -> int:
    """Return the bytes of the trained weights and their two means in the optimizer, in all processes."""
    return 3 * sum(parameter.numel() * parameter.element_size() for parameter in loop.trained)


def recipe(steps: int, small: bool) -> Recipe:
    """Return a recipe with a small language model, whose weights are trained."""
    language = {"name": "vicuna", "config": LARGE, "system_prompt": ""}
    changes = {
        **({} if small else {"model.language_model": language}),
        "data": [{"name": "pairs", "path": "unused"}],
        "train": {
            "trainable": ["language_model"],
            "global_batch": 2,
            "steps": steps,
            "save_every": SAVE_EVERY,
            "schedule": "constant",
        },
    }
    return recipe_from_dict(tiny.recipe(**changes), Registry.load(), where="saving")


def train(out: Path, steps: int, small: bool, **options: Any) -> tuple[Watch, float]:
    """Train or resume a run; return its watch, and the seconds until its first step."""
    watch = Watch()
    barrier()
    begin = time.perf_counter()
    with Peak() as peak, watch.watching(peak):
        train_recipe(recipe(steps, small), Registry.load(), out, datasets=[TinyDocuments()], **options)
    return watch, watch.first_step - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=3, help="resume points, of which the median counts")
    parser.add_argument("--folder", type=Path, help="parent of the run's folder (default: the system's)")
    parser.add_argument("--small", action="store_true", help="a small model, whose times mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    join()
    folders = [tempfile.mkdtemp(dir=arguments.folder) if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(folders)
    folder = Path(str(folders[0]))
    steps = SAVE_EVERY * arguments.points + 1
    try:
        watch, starting = train(folder / "run", steps, arguments.small)
        resumed, resuming = train(folder / "run", steps + 1, arguments.small, resume=True)
        if is_main():
            print(f"\n| {count(world_size(), 'process')} | |\n|---|---|")
            print("\n".join(watch.lines()))
            print(f"| a new run until its first step | {starting:.2f} s |")
            print(f"| a resumed run until its first step | {resuming:.2f} s |")
            print(f"| memory of a process while it resumes | {resumed.loading / 1e6:.0f} MB |")
        barrier()
    finally:
        if is_main():
            shutil.rmtree(folder)
    if world_size() > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
