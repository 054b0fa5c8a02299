"""Training in four processes with each sharding.

`torchrun` runs this file in each process of `test_sharding.py`: `shardings.py FOLDER`. Two of them stand for the
processes of one machine.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

import layouts
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.distributed import is_main, join
from dreamkit.errors import TrainingError
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from dreamkit.training.sharding import LOCAL_SIZE

SHARDINGS = ("none", "full", "hybrid")
STEPS_OF = {"float32": 5, "float64": 8}
SAVE_EVERY = 3  # steps of a run that is resumed
LOCAL_SIZES = ("3", "1", "")  # that do not fit four processes; the last is a missing one
OTHER = {"none": "hybrid", "full": "none", "hybrid": "full"}  # sharding of a resumed run


def measured_run(out: Path, precision: str, **settings: Any) -> None:
    with patch.dict(layouts.STEPS_OF, STEPS_OF):
        layouts.measured_run(out, precision, **settings)


def assert_same_run(actual: Path, expected: Path, precision: str) -> None:
    with patch.dict(layouts.STEPS_OF, STEPS_OF):
        layouts.assert_same_run(actual, expected, precision)


def resumed_run(out: Path, precision: str, **settings: Any) -> None:
    """Continue a measured run from the resume point in the folder `out`."""
    recipe = layouts.recipe(
        condition_drop=0.5,
        precision=precision,
        global_batch=layouts.GLOBAL_BATCH,
        steps=STEPS_OF[precision],
        save_every=SAVE_EVERY,
        **settings,
    )
    train_recipe(recipe, Registry.load(), out, datasets=[layouts.TinyDocuments()], resume=True)


def blame(folder: Path, sharding: str) -> None:
    """Train until the loss is not finite; write the message of each process."""
    settings = layouts.recipe(steps=2, global_batch=6, log_every=2, sharding=sharding)
    model = build(fit(settings, Registry.load()))
    layouts.make_losses_nan(model)
    data = [layouts.TinyDocuments(layouts.one_bad_document())]
    try:
        train_recipe(settings, Registry.load(), folder / f"bad {sharding}", model=model, datasets=data)
    except TrainingError as error:
        (folder / f"bad {sharding}.{dist.get_rank()}.txt").write_text(str(error))


def main(folder: Path) -> None:
    join()
    # two machines of two processes
    os.environ |= {LOCAL_SIZE: "2", "LOCAL_RANK": str(dist.get_rank() % 2)}
    for sharding in SHARDINGS:
        for precision in STEPS_OF:
            out = folder / f"{sharding} {precision}"
            # two forward passes in the first process, and idle ones in the others
            passes: dict[str, Any] = {"micro_batch": 1, "packing": False} if precision == "float64" else {}
            measured_run(out, precision, sharding=sharding, save_every=SAVE_EVERY, **passes)
        resumed = folder / f"resumed {sharding}"
        if is_main():
            point = f"checkpoints/step-{SAVE_EVERY}"
            shutil.copytree(folder / f"{sharding} float32" / point, resumed / point)
        dist.barrier()
        resumed_run(resumed, "float32", sharding=OTHER[sharding])
        blame(folder, sharding)
    for size in LOCAL_SIZES:
        os.environ[LOCAL_SIZE] = size
        try:
            measured_run(folder / "misfit", "float32", sharding="hybrid")
        except TrainingError as error:
            (folder / f"misfit {size}.{dist.get_rank()}.txt").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
