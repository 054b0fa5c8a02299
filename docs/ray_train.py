"""Train a recipe by Ray Train, with the loop of `dreamkit train`: python ray_train.py RECIPE OUT [KEY=VALUE...].

`WORKERS` is the number of workers, and `GPUS=1` gives each of them one. A worker that dies ends the others. Ray then
starts all of them again, at most twice, and the run continues from its last resume point.
"""

import os
import sys
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train(config: dict) -> None:
    from dreamkit import Registry, load_recipe, train_recipe

    registry = Registry.load()
    recipe = load_recipe(config["recipe"], config["settings"], registry)
    has_begun = any(Path(config["out"], "checkpoints").glob("step-*"))
    train_recipe(recipe, registry, config["out"], resume=has_begun)


if __name__ == "__main__":
    recipe, out, *settings = sys.argv[1:]
    out = str(Path(out).absolute())  # workers have other working folders
    use_gpu = os.environ.get("GPUS") == "1"
    TorchTrainer(
        train,
        train_loop_config={"recipe": recipe, "settings": settings, "out": out},
        torch_config=TorchConfig(backend="cuda:nccl,cpu:gloo" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=int(os.environ.get("WORKERS", "2")), use_gpu=use_gpu),
        run_config=RunConfig(storage_path=f"{out}-ray", failure_config=FailureConfig(max_failures=2)),
    ).fit()
