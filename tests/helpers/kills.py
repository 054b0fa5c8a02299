"""Kills of commands at random times: each is resumed until it is finished, and is the one of no kill, bit by bit.

`python tests/helpers/kills.py --work train --kills 10 --processes 1 --seed 0` prints the numbers of kills and runs, and
seconds. `--work cache` starts each command with one to `--processes` processes. The commands are forks of this process,
which has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

import cache_runs
import layouts
import runs
from dreamkit.cache.unfinished import Unfinished
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import count
from dreamkit.runs.run_paths import resume_points
from dreamkit.training.run_log import TIMES
from failing_writes import content
from forks import run_forks


class Work(ABC):
    """The work of a command that may be killed.

    Attributes:
        name: its name on the command line.
        product: what is the same after all kills.
        starts: text before the number of processes of a start.
    """

    name: ClassVar[str]
    product: ClassVar[str]
    starts: ClassVar[str] = ""

    def processes(self, most: int, rng: random.Random) -> int:
        """Return the number of processes of a start."""
        return most

    @abstractmethod
    def do(self, out: Path) -> None:
        """Begin the work in the folder `out`, or continue it."""

    @abstractmethod
    def is_finished(self, out: Path) -> bool:
        """Return True if the work is finished."""

    @abstractmethod
    def check(self, out: Path) -> None:
        """Check what a kill has left."""

    @abstractmethod
    def outcome(self, out: Path) -> Any:
        """Return what is the same after all kills."""


class Training(Work):
    """Runs of the tiny documents."""

    name, product = "train", "weights and log"

    def do(self, out: Path) -> None:
        # more than one step is not saved, and all steps have random numbers
        recipe = layouts.recipe(steps=5, save_every=2, global_batch=4, condition_drop=0.5)
        runs.run(out, recipe, resume=bool(resume_points(out)))

    def is_finished(self, out: Path) -> bool:
        return (out / "checkpoint").exists()

    def check(self, out: Path) -> None:
        for point in resume_points(out):
            Manifest.read(point)  # which compares all files
        if not (self.is_finished(out) or resume_points(out)):  # only a new folder can be trained into
            shutil.rmtree(out, ignore_errors=True)

    def outcome(self, out: Path) -> Any:
        return outcome(out)


class Caching(Work):
    """Caches of the images of many documents, each time by another number of processes."""

    name, product, starts = "cache", "bytes", "up to "

    def processes(self, most: int, rng: random.Random) -> int:
        return rng.randint(1, most)

    def do(self, out: Path) -> None:
        cache_runs.write(out, resume=Unfinished(out).has_blocks())

    def is_finished(self, out: Path) -> bool:
        return out.exists()

    def check(self, out: Path) -> None:
        if self.is_finished(out):
            cache_runs.verify(out)

    def outcome(self, out: Path) -> Any:
        return content(out)


WORKS = {work.name: work for work in (Training(), Caching())}


class Killed:
    """Work in processes that a kill may end.

    Attributes:
        kills: number of killed processes.
        runs: number of finished runs.
        slowest: most seconds from the kill of one of several processes to the end of the others by themselves.
        waiting: number of kills after which others were killed, as `torchrun` does: they waited for all to begin.
    """

    def __init__(self, folder: Path, work: Work, processes: int) -> None:
        self.folder, self.work, self.processes = folder, work, processes
        self.kills = self.runs = self.waiting = 0
        self.slowest = 0.0
        begin = time.monotonic()
        self.straight = folder / "straight"
        ended = run_forks(
            1 if work.name == "cache" else processes, lambda: work.do(self.straight), folder / "output"
        )
        assert not any(ended.codes), self.output()
        self.seconds = time.monotonic() - begin

    def run(self, out: Path, kills: int, rng: random.Random) -> None:
        """Kill a run at up to `kills` random times, resume it until it is finished, and compare it."""
        while not self.work.is_finished(out):
            after = rng.uniform(0, self.seconds) if kills else None
            kills -= kills > 0
            processes = self.work.processes(self.processes, rng)
            ended = run_forks(
                processes,
                lambda: self.work.do(out),
                self.folder / "output",
                kill_after=after,
                victim=rng.randrange(processes),
            )
            self.kills += ended.was_killed
            self.waiting += ended.is_waiting
            if not ended.is_waiting:
                self.slowest = max(self.slowest, ended.seconds)
            assert self.work.is_finished(out) or (ended.was_killed and all(ended.codes)), self.output()
            self.work.check(out)
        self.runs += 1
        assert self.work.outcome(out) == self.work.outcome(self.straight)
        shutil.rmtree(out)

    def output(self) -> str:
        return (self.folder / "output").read_text()[-8000:]


def outcome(out: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """Return the weights of a finished run, and its log without times."""
    files = sorted((out / "checkpoint").rglob("*.safetensors"))
    assert files
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}, log


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--kills", 10), ("--processes", 1), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--work", choices=WORKS, default=Training.name)
    options = parser.parse_args(arguments)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    begin, rng = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed = Killed(Path(folder), WORKS[options.work], options.processes)
        while killed.kills < options.kills:
            killed.run(Path(folder, f"run {killed.runs}"), min(4, options.kills - killed.kills), rng)
    starts = f"{killed.work.starts}{count(options.processes, 'process')}"
    print(
        f"{killed.kills} kills of runs of {starts}, {killed.runs} runs finished with the same {killed.work.product}; "
        f"{time.monotonic() - begin:.0f} s; the other processes ended at most {killed.slowest:.1f} s after a kill, "
        f"{killed.waiting} times by their launcher"
    )


if __name__ == "__main__":
    main()
