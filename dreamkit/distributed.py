"""Processes that train together: their start, sums over them, barriers, and the units of a sharded model."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

TIMEOUT: Final = timedelta(minutes=30)  # of a meeting of all processes: one of them may write a checkpoint


def join() -> torch.device:
    """Return the device of this process. Under `torchrun`, this call joins the other processes."""
    from accelerate import PartialState  # takes a second to import

    device: torch.device = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return True in the one process that writes files and prints messages."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


def total(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, on its device. Every process must call this function."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a shard, detached and on the CPU. Every process must call this function."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def units(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of `model` that are sharded on their own: those in `_no_split_modules` of its classes.

    transformers and diffusers define this attribute. Children come before parents: a parent unit owns the tensors that
    its children leave.
    """
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in reversed([*model.modules()][1:]) if type(module).__name__ in blocks]
