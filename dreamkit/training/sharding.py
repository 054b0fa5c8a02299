"""Sharding of a model over the processes that train it, by torch's FSDP2 on a mesh of these processes.

Each of the model's `units` is gathered while it runs. The root owns all other tensors, gathered for the whole forward
and backward pass. Their gradients are reduced in the dtype of the weights.

With `precision: bfloat16`, units are gathered in bfloat16: they compute in it anyway, by autocast. The root is gathered
in float32. So is a unit within a part's `float32_modules`.
"""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from dreamkit.distributed import gathered, join_alone, unit_methods, units, world_size
from dreamkit.errors import TrainingError, count
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import float32_modules
from dreamkit.recipe.sections import TrainSection

LOCAL_SIZE: Final = "LOCAL_WORLD_SIZE"  # variable of `torchrun`: the number of processes of this machine
DIMENSIONS: Final = ("replicate", "shard")
# Autocast casts the inputs of layers, and leaves the hidden states between layers in float32.
HALF: Final = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
)


def shard(model: DreamModel, device: torch.device, train: TrainSection, *, as_stored: bool = False) -> None:
    """Shard `model` over all processes as `train` says, in place, and move it to `device`.

    With `cpu_offload`, the shards stay in the host's memory. Every process must call this function. With `as_stored`,
    for a model of `build_as_stored`, the slices of each unit are then cast to the type of `train.precision`, so that
    the model is that of `build`.

    Raises:
        TrainingError: see `mesh_shape`.
    """
    join_alone()  # one process, not started by torchrun
    shape = mesh_shape(train)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=DIMENSIONS[-len(shape) :])
    whole = [part for name, part in model.parts().items() if name in train.unsharded]
    unsharded = {
        parameter for part in whole for parameter in part.parameters() if not parameter.requires_grad
    }
    for part in whole:
        part.to(device)
    # The pages of a host's memory are locked for copies to a device.
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if train.cpu_offload else OffloadPolicy()
    is_half, in_float32 = train.precision == "bfloat16", float32_modules(model)
    methods = unit_methods(model)
    for module in units(model):
        if unsharded.issuperset(module.parameters()):
            continue
        precision = HALF if is_half and module not in in_float32 else MixedPrecisionPolicy()
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload, ignored_params=unsharded)
        for method in sorted(methods[module]):
            register_fsdp_forward_method(module, method)
        if as_stored:
            _cast(module, train)
    fully_shard(model, mesh=mesh, offload_policy=offload, ignored_params=unsharded)
    register_fsdp_forward_method(model, "draw")
    if as_stored:
        _cast(model, train)


def _cast(module: nn.Module, train: TrainSection) -> None:
    """Cast the tensors of a sharded module that were stored in any type."""
    module.float()  # also before float64: `from_pretrained` rounds the weights to float32
    if train.precision == "float64":
        module.double()


def begin_pass(model: nn.Module, is_last: bool) -> None:
    """Prepare a sharded `model` for one forward and backward pass of an update.

    Before the last pass, replicas do not exchange gradients, and the root stays gathered. Gradients are scattered in
    each pass: whole ones, kept for the last pass, would take as much memory as the weights.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(is_last)
        model.set_reshard_after_backward(is_last, recurse=False)


def end_passes(model: nn.Module) -> None:
    """Scatter the root of a sharded `model` after passes without gradients, which leave it gathered.

    Otherwise the next forward pass would compute with its weights of now.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


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
    values = gathered(os.environ.get(LOCAL_SIZE, ""))
    numbers = {int(value) if value.isdecimal() else 0 for value in values}
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
