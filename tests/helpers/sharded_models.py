"""Sharded models that load and save slices.

`torchrun` runs this file in each process of `test_slices.py`: `sharded_models.py FOLDER`.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

import layouts
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.checkpoints.load import load_weights
from dreamkit.checkpoints.save import save_checkpoint, write_own_files
from dreamkit.distributed import is_main, join, local_region, units, whole
from dreamkit.errors import DreamkitError, OutputError, with_notes
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import TrainSection
from dreamkit.registry.registry import Registry
from dreamkit.training import point_writer
from dreamkit.training.optimizer import make_optimizer
from dreamkit.training.optimizer_state import optimizer_tensors
from dreamkit.training.point_writer import PointWriter
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_state import DocumentCounts, Interval, RunState
from dreamkit.training.run import train_recipe
from saved_models import build_tiny, perturb

ROWS = "language_model.model.model.layers.0.mlp.down_proj.weight"  # divided among all processes
TRAIN = TrainSection(trainable=(), steps=1, global_batch=1)
INPUTS = "DREAMKIT_TEST_INPUTS"  # variable with the folder of the checkpoints to load
SETTINGS = {"steps": 6, "save_every": 2, "keep_last": 0, "global_batch": 5, "precision": "float64"}
RESUMED = {
    "none": "none",
    "full": "full",
}  # runs that continue one of one process, and the one before: their sharding
SHAPES = ((3,), (1, 3), (3, 1))  # of meshes: replicas, and slices of each


def shard(model: DreamModel, shape: tuple[int, ...] = ()) -> DreamModel:
    """Shard a model over all processes, or over a mesh of this shape: replicas, and slices of each."""
    shape = shape or (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "slices")[-len(shape) :])
    for module in units(model):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def write_whole(model: DreamModel, file: Path) -> None:
    """Write all values of a sharded model into one file."""
    tensors = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    if is_main():
        save_file(tensors, file)


def write_error(folder: Path, name: str, action: Any) -> None:
    """Write the error of `action` in this process into `NAME.RANK.txt`."""
    try:
        action()
    except DreamkitError as error:
        (folder / f"{name}.{dist.get_rank()}.txt").write_text(with_notes(error))


def new_optimizer(model: DreamModel) -> AdamW:
    recipe = layouts.recipe()
    return make_optimizer(parameter_groups(model, recipe), recipe.train)


def write_resume_point(out: Path, shape: tuple[int, ...]) -> None:
    """Write a resume point of an adapted model after a step of its optimizer, and the same values whole."""
    model = build_tiny(**{"model.adapters": layouts.ADAPTERS})
    model.set_trainable(["dream_queries", "new_tokens"])
    torch.manual_seed(0)
    perturb(model)
    shard(model, shape)
    optimizer = new_optimizer(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = parameter.detach().clone()
    optimizer.step()
    processes = dist.get_world_size()
    state = RunState(1, processes, processes, Interval(), DocumentCounts())
    PointWriter(out, TRAIN, None).save(state, model, optimizer, RandomState())
    save_checkpoint(model, out / "checkpoint")
    moments = {name: whole(tensor) for name, tensor in optimizer_tensors(model, optimizer).items()}
    if is_main():
        save_file(moments, out / "optimizer.safetensors")


def failing_write(point: Path, files: Any) -> Any:
    """Write this process's files of a point; the second process fails at the second step."""
    if dist.get_rank() == 1 and "step-2" in point.name:
        raise OutputError(f"cannot write {point.name}: no space")
    return write_own_files(point, files)


def main(folder: Path) -> None:
    join()
    inputs, data = Path(os.environ[INPUTS]), [layouts.TinyDocuments()]
    for shape in SHAPES:
        model = shard(build_tiny(), shape)
        regions = [local_region(each) for each in model.parameters() if isinstance(each, DTensor)]
        assert len(regions) > 50
        is_last = dist.get_rank() == 2  # of four rows, the first two processes have two each
        assert any(0 in region.shape for region in regions) == (is_last and shape != (3, 1))
        load_weights(model, inputs / "checkpoint")
        write_whole(model, folder / f"loaded {shape}.safetensors")

    for shape in SHAPES:
        write_resume_point(folder / f"run {shape}", shape)

    with patch.object(point_writer, "LEAST_BYTES", 0):  # written while training goes on
        for name, sharding in RESUMED.items():
            settings = layouts.recipe(**SETTINGS, sharding=sharding)
            if is_main():
                source = inputs / "straight" if name == "none" else folder / "none"
                step = Path("checkpoints/step-2" if name == "none" else "checkpoints/step-4")
                shutil.copytree(source / step, folder / name / step)
            dist.barrier()
            train_recipe(settings, Registry.load(), folder / name, datasets=data, resume=True)
        with patch.object(point_writer, "write_own_files", failing_write):
            settings = layouts.recipe(**SETTINGS | {"save_every": 1})
            write_error(
                folder,
                "failing",
                lambda: train_recipe(settings, Registry.load(), folder / "failing", datasets=data),
            )

    model = shard(build_tiny())
    before = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for name in ("not finite", "cut"):
        write_error(folder, name, lambda name=name: load_weights(model, inputs / name))
    assert all(torch.equal(whole(tensor), before[name]) for name, tensor in model.state_dict().items())
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
