"""What several processes have to agree on: who writes, when all have arrived, and how a model is sharded (FSDP2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and talks to the user."""
    return not dist.is_initialized() or dist.get_rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    if world_size() > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes; a collective, and no copy to the host."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor behind a sharded one (a collective), detached and on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def shard(model: nn.Module, device: torch.device) -> None:
    """Shards `model`, already on `device`, over all processes, in place.

    The blocks that the model's own classes say must stay in one piece (`_no_split_modules`, in transformers and
    diffusers) become units of their own, gathered when they run; the root owns the rest, gathered for the whole
    forward pass.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for module in units(model):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def units(model: nn.Module) -> list[nn.Module]:
    """The blocks of `model` that are sharded as units of their own.

    Children come first: what a parent unit holds is what is left after its children took theirs.
    """
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in reversed([*model.modules()][1:]) if type(module).__name__ in blocks]
