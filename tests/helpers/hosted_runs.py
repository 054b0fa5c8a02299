"""Two processes of a program that has set up their group itself, and trains in a thread, as Ray Train does.

`torchrun` runs this file in each process of `test_same_processes.py`: `hosted_runs.py FOLDER`.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

import layouts
from dreamkit.data.dataset import Dataset
from dreamkit.distributed import leave
from dreamkit.errors import DreamkitError
from dreamkit.recipe.sections import HeldOutSection
from dreamkit.registry.registry import Registry
from dreamkit.training import run_folder, same_processes
from dreamkit.training.agreement import Agreement
from dreamkit.training.run import train_recipe

STEPS = 3
FAULTS = ("packages", "settings", "prompts", "resume", "data", "held_out", "folder", "time")
PROMPT = "a" * 200  # longer than messages show


def train(
    out: Path,
    datasets: list[Dataset] | None = None,
    held_out: Sequence[Dataset] = (),
    resume: bool = False,
    **settings: object,
) -> None:
    recipe = layouts.recipe(steps=STEPS, global_batch=4, **settings)
    sections = tuple(HeldOutSection(recipe.data[0].name, recipe.data[0].config) for _ in held_out)
    train_recipe(
        replace(recipe, train=replace(recipe.train, eval_every=int(bool(held_out))), held_out=sections),
        Registry.load(),
        out,
        datasets=datasets or [layouts.TinyDocuments()],
        held_out=held_out,
        resume=resume,
    )


def fail(fault: str, out: Path, rank: int) -> None:
    """Train with another machine's fault in the second process."""
    is_other = rank == 1
    match fault:
        case "packages":
            versions = {"torch": "1.0"} if is_other else {}
            real = same_processes.installed_version
            with patch.object(
                same_processes, "installed_version", lambda name: versions.get(name) or real(name)
            ):
                train(out)
        case "settings":
            train(out, learning_rate=0.5 if is_other else 0.25)
        case "prompts":
            train(out, draw_every=1, prompts=[PROMPT + "b" * is_other])
        case "resume":
            train(out, resume=is_other)
        case "data":
            train(
                out,
                [layouts.TinyDocuments(layouts.one_bad_document()) if is_other else layouts.TinyDocuments()],
            )
        case "held_out":
            data = layouts.TinyDocuments(layouts.TinyDocuments().documents[is_other:])
            train(out, held_out=[data])
        case "folder":
            with patch.object(run_folder, "PATIENCE", 0.0):
                train(out / str(rank) / "run")
        case "time":
            meeting = Agreement()
            _set_pg_timeout(timedelta(seconds=0.5), meeting._hosts)
            meeting.call(lambda: wait_for(out.with_name("time.0.txt")) if is_other else None)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


def message(call: Callable[[], None]) -> str:
    try:
        call()
    except DreamkitError as error:
        return str(error)
    except RuntimeError:  # of the late process: nobody waits for it
        return ""
    return ""


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for fault in FAULTS:
        text = message(lambda fault=fault: fail(fault, folder / fault, rank))  # type: ignore[misc]
        (folder / f"{fault}.{rank}.txt").write_text(text)
        dist.barrier()
    train(folder / "hosted")
    leave()
    dist.barrier()  # the group is still there


if __name__ == "__main__":
    errors: list[BaseException] = []

    def run() -> None:
        try:
            main(Path(sys.argv[1]))
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    dist.destroy_process_group()
    sys.exit(bool(errors))
