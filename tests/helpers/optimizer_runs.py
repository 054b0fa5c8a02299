"""Runs of each optimizer with moving averages, which other numbers of processes continue.

`torchrun` runs this file in each process of `test_optimizer_processes.py`: `optimizer_runs.py FOLDER`. Without a
resume point in `FOLDER/NAME`, it trains the run from its start, else it continues the run.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import tiny
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.distributed import join, world_size
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.ema import averaged
from dreamkit.training.optimizer import make_optimizer
from dreamkit.training.run import train_recipe
from dreamkit.training.sharding import shard
from layouts import TRAINABLE, TinyDocuments, uneven_batches

OPTIMIZERS = ("adamw", "adafactor", "adamw8bit")
SETTINGS: dict[str, Any] = {
    **{
        "steps": 3,
        "save_every": 1,
        "keep_last": 0,
        "log_every": 1,
        "global_batch": 5,
        "precision": "float64",
    },
    **{"learning_rate": 1e-2, "weight_decay": 0.1, "ema": 0.9, "trainable": [*TRAINABLE, "vision_encoder"]},
}
# Matrices large enough for 8 bits: 75 rows, which neither two nor three processes share evenly with all else.
WIDE = {"model.language_model.config.hidden_size": 64, "model.language_model.config.intermediate_size": 75}


def recipe(optimizer: str, **settings: Any) -> Recipe:
    train = SETTINGS | {"optimizer": optimizer} | settings
    changes = {"train": train, "data": [{"name": "pairs", "path": "unused"}], **WIDE}
    return recipe_from_dict(tiny.recipe(**changes), Registry.load(), where="tiny")


def train(out: Path, optimizer: str, **settings: Any) -> Any:
    """Train a run into the folder `out`, or continue it."""
    resume = (out / "checkpoints").is_dir()
    data = [TinyDocuments()]
    return train_recipe(recipe(optimizer, **settings), Registry.load(), out, datasets=data, resume=resume)


def check_averages(device: torch.device) -> None:
    """Check that a sharded model computes with its averages in their block, and with its weights before and after.

    The root stays gathered after a forward pass without a backward pass.
    """
    model, settings = tiny.model(), recipe("adamw")
    batch = uneven_batches(model)[1]
    model.set_trainable(settings.train.trainable)
    shard(model, device, settings.train)
    optimizer = make_optimizer(parameter_groups(model, settings), settings.train)
    for state in optimizer.state.values():
        state["ema"].mul_(1.5)

    def loss() -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return model(batch).loss

    before = loss()
    with averaged(model, optimizer):
        inside = loss()
    assert torch.equal(loss(), before) and not torch.isclose(inside, before)


def main(folder: Path) -> None:
    device = join()
    if world_size() == 2:
        check_averages(device)
    last: dict[str, dict[str, Any]] = {  # a mesh of two dimensions, and slices on the host
        "adafactor": {"sharding": "none"},
        "adamw8bit": {"cpu_offload": True},
    }
    for optimizer in OPTIMIZERS:
        train(folder / optimizer, optimizer, **last.get(optimizer, {}) if world_size() == 3 else {})
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
