"""Sharding of a model over the processes that train it, by torch's FSDP2 on a mesh of these processes.

Each of the model's `units` is gathered while it runs. The root owns all other tensors, gathered for the whole forward
pass.
"""

from __future__ import annotations

import os
from typing import Final

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dreamkit.distributed import units, world_size
from dreamkit.errors import TrainingError, count
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import TrainSection

LOCAL_SIZE: Final = "LOCAL_WORLD_SIZE"  # variable of `torchrun`: the number of processes of this machine
DIMENSIONS: Final = ("replicate", "shard")


def shard(model: DreamModel, device: torch.device, train: TrainSection, *, as_stored: bool = False) -> None:
    """Shard `model` over all processes as `train.sharding` says, in place, and move it to `device`.

    Every process must call this function. With `as_stored`, for a model of `build_as_stored`, the slices of each unit
    are then cast to the type of `train.precision`, so that the model is that of `build`.

    Raises:
        TrainingError: see `mesh_shape`.
    """
    shape = mesh_shape(train)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=DIMENSIONS[-len(shape) :])
    for module in [*units(model), model]:
        fully_shard(module, mesh=mesh)
        if as_stored:
            _cast(module, train)


def _cast(module: nn.Module, train: TrainSection) -> None:
    """Cast the tensors of a sharded module that were stored in any type."""
    module.float()  # also before float64: `from_pretrained` rounds the weights to float32
    if train.precision == "float64":
        module.double()


def mesh_shape(train: TrainSection) -> tuple[int, ...]:
    """Return the shape of the mesh of all processes: (shards,), or (replicas, shards).

    Every process must call this function.

    Raises:
        TrainingError: `hybrid` does not fit the numbers of processes. All processes raise it.
    """
    processes = world_size()
    if train.sharding == "full" or processes == 1:
        return (processes,)
    shards = 1 if train.sharding == "none" else _processes_of_a_machine()
    return processes // shards, shards


def _processes_of_a_machine() -> int:
    """Return the number of processes of each machine.

    Raises:
        TrainingError: it is unknown, differs between machines or is 1. All processes raise it.
    """
    values: list[str | None] = [None] * world_size()
    dist.all_gather_object(values, os.environ.get(LOCAL_SIZE))
    numbers = {int(value) if value is not None and value.isdecimal() else 0 for value in values}
    processes = count(world_size(), "process")
    if 0 in numbers:
        raise TrainingError(
            f"train.sharding: hybrid needs the number of processes of a machine in {LOCAL_SIZE}, got none; start them "
            "with torchrun, or set train.sharding=full"
        )
    if len(numbers) > 1 or world_size() % min(numbers):
        listed = " and ".join(map(str, sorted(numbers)))
        raise TrainingError(
            f"train.sharding: hybrid expects as many processes on each machine, got {listed} of {processes}; change "
            "--nproc-per-node of torchrun, or set train.sharding=full"
        )
    (each,) = numbers
    if each == 1:
        raise TrainingError(
            f"train.sharding: hybrid shards over the processes of a machine, got 1 of {processes}; start several on "
            "each machine (torchrun --nproc-per-node), or set train.sharding=full"
        )
    return each
