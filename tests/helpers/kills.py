"""Kills of runs at random times: each run is resumed until it is finished, and is the one of no kill, bit by bit.

`python tests/helpers/kills.py --kills 10 --processes 1 --seed 0` prints the numbers of kills and runs, and seconds. The
runs are forks of this process, which has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

import layouts
import runs
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.errors import count
from dreamkit.runs.run_paths import resume_points
from dreamkit.training.run_log import TIMES

SECONDS = 120  # of one start of a run, if others share the cores
LAUNCHER = 10  # seconds until it kills the other processes


class Killed:
    """Runs of the tiny documents in processes that a kill may end.

    Attributes:
        kills: number of killed processes.
        runs: number of finished runs.
        slowest: most seconds from the kill of one of several processes to the end of the others by themselves.
        waiting: number of kills after which others were killed, as `torchrun` does: they waited for all to begin.
    """

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self.kills = self.runs = self.waiting = 0
        self.slowest = 0.0
        begin = time.monotonic()
        self.straight = folder / "straight"
        codes, _ = self.start(self.straight, None)
        assert not any(codes), self.output()
        self.seconds = time.monotonic() - begin

    def run(self, out: Path, kills: int, rng: random.Random) -> None:
        """Kill a run at up to `kills` random times, resume it until it is finished, and compare it."""
        while not (out / "checkpoint").exists():
            after = rng.uniform(0, self.seconds) if kills else None
            kills -= kills > 0
            codes, was_killed = self.start(out, after, victim=rng.randrange(self.processes))
            self.kills += was_killed
            is_finished = (out / "checkpoint").exists()
            assert is_finished or (was_killed and all(codes)), self.output()
            for point in resume_points(out):
                Manifest.read(point)  # which compares all files
            if not (is_finished or resume_points(out)):  # only a new folder can be trained into
                shutil.rmtree(out, ignore_errors=True)
        self.runs += 1
        assert outcome(out) == outcome(self.straight)
        shutil.rmtree(out)

    def start(self, out: Path, after: float | None, victim: int = 0) -> tuple[list[int], bool]:
        """Start or resume a run; kill one process `after` seconds. Return the exit codes, and True if it was killed."""
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        begin = time.monotonic()
        started = [self.fork(out, rank, port) for rank in range(self.processes)]
        codes: dict[int, int] = {}
        was_killed, is_waiting, killed_at = False, False, 0.0
        while len(codes) < len(started):
            for pid in set(started) - codes.keys():
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            now = time.monotonic()
            if after is not None and not was_killed and now - begin > after:
                was_killed, killed_at = started[victim] not in codes, now
                if was_killed:
                    os.kill(started[victim], signal.SIGKILL)
                after = None
            if was_killed and now - killed_at > LAUNCHER and not is_waiting:
                is_waiting = True
                for pid in set(started) - codes.keys():
                    os.kill(pid, signal.SIGKILL)
            assert now - begin < SECONDS, self.output()
            time.sleep(0.002)
        self.waiting += is_waiting
        if was_killed and not is_waiting:
            self.slowest = max(self.slowest, time.monotonic() - killed_at)
        return [codes[pid] for pid in started], was_killed

    def fork(self, out: Path, rank: int, port: int) -> int:
        """Start one process of a run; return its id."""
        if pid := os.fork():
            return pid
        code = 1
        try:
            log = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if self.processes > 1:
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes}
                numbers |= {"LOCAL_WORLD_SIZE": self.processes, "MASTER_PORT": port}
                os.environ.update({name: str(number) for name, number in numbers.items()})
                os.environ["MASTER_ADDR"] = "localhost"
            # more than one step is not saved, and all steps have random numbers
            recipe = layouts.recipe(steps=5, save_every=2, global_batch=4, condition_drop=0.5)
            runs.run(out, recipe, resume=bool(resume_points(out)))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

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
    options = parser.parse_args(arguments)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    begin, rng = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed = Killed(Path(folder), options.processes)
        while killed.kills < options.kills:
            killed.run(Path(folder, f"run {killed.runs}"), min(4, options.kills - killed.kills), rng)
    print(
        f"{killed.kills} kills of runs of {count(options.processes, 'process')}, {killed.runs} runs finished with "
        f"the same weights and log; {time.monotonic() - begin:.0f} s; the other "
        f"processes ended at most {killed.slowest:.1f} s after a kill, {killed.waiting} times by their launcher"
    )


if __name__ == "__main__":
    main()
