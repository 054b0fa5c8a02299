"""Commands `dreamkit cache` of several processes, some of which are killed, fail or get a signal; forks of this one.

`python tests/helpers/cache_processes.py FOLDER` writes the caches of `test_many_processes.py` into `FOLDER`, and
`results.json`: the exit codes and the output of each command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

import caches
import layouts
import tiny
from dreamkit import peers
from dreamkit.cache import listing, new_images
from dreamkit.cache.fill import COMPUTED
from dreamkit.cache.shared_blocks import SharedBlocks
from dreamkit.cache.unfinished import Unfinished
from dreamkit.cli import main as command_line
from dreamkit.distributed import rank, world_size
from dreamkit.errors import OutputError
from forks import run_forks

IMAGES, DOCUMENTS = 17, 40
BAD = (3, 22)  # documents without a file


def write_data(folder: Path) -> None:
    """Write a recipe and its data: each image is in documents of several blocks."""
    train = {"trainable": layouts.TRAINABLE, "steps": 1, "batch_size": 2}
    data = [{"name": "pairs", "path": "captions.jsonl"}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny.recipe(train=train, data=data)))
    for number in range(IMAGES):
        tiny.picture(number).save(folder / f"{number}.png")
    names = ["gone.png" if number in BAD else f"{7 * number % IMAGES}.png" for number in range(DOCUMENTS)]
    lines = [json.dumps({"image": name, "caption": "a picture"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(lines))


@contextmanager
def at_block(action: Callable[[], None], victim: int, blocks: int = 2) -> Iterator[None]:
    """Do `action` in the process `victim` when it has finished this number of blocks of rows."""
    finish, left = Unfinished.finish_block, iter(range(blocks, -1, -1))

    def finishing(work: Unfinished, stage: Any, number: int, content: Any) -> None:
        finish(work, stage, number, content)
        if stage == COMPUTED and rank() == victim and next(left) == 1:
            action()

    with patch.object(Unfinished, "finish_block", finishing):
        yield


def take_in_turn(shared: SharedBlocks, number: int, take: Any = SharedBlocks._take) -> bool:
    """Let processes take blocks in turn, as equal devices do: the quickest of the forks would take most of them."""
    return number % world_size() == rank() and take(shared, number)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    raise OutputError("cannot write here: No space left on device")


class Commands:
    """Commands that are run one by one; `results` has the exit codes and the output of each by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}

    def run(self, name: str, processes: int, out: str, *arguments: str) -> None:
        """Write the cache `out` in this number of processes."""

        def command() -> None:
            sys.argv = ["dreamkit", "cache", "recipe.yaml", "--out", out, *arguments]
            command_line()

        output = self.folder / f"{name}.txt"
        ended = run_forks(processes, command, output)
        self.results[name] = {"codes": ended.codes, "output": output.read_text()}


def main(folder: Path) -> None:
    caches.build_model(caches.recipe())  # the forks import nothing
    os.chdir(folder)
    write_data(folder)
    commands = Commands(folder)
    commands.run("one", 1, "one")
    commands.run("two", 2, "two", "train.workers=1")
    commands.run("three", 3, "three")
    with at_block(send(signal.SIGKILL), victim=1):
        commands.run("killed", 2, "killed")
    commands.run("killed, resumed", 3, "killed", "--resume")
    for each, victim in ((signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGUSR1, 1)):
        with at_block(send(each), victim):
            commands.run(each.name, 2, each.name)
    commands.run("SIGTERM, resumed", 1, "SIGTERM", "--resume")
    with at_block(fail, victim=1):
        commands.run("failed", 3, "failed")
    commands.run("failed, resumed", 2, "failed", "--resume")
    commands.run("stopped", 2, "stopped", "train.on_error=stop")
    (folder / "results.json").write_text(json.dumps(commands.results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    listing.DOCUMENTS_PER_BLOCK, new_images.LEAST_ROWS, new_images.PICTURES = 4, 2, 2  # type: ignore[misc]
    peers.GRACE = 1.0  # type: ignore[misc]  # seconds
    SharedBlocks._take = take_in_turn  # type: ignore[method-assign]
    main(Path(sys.argv[1]))
