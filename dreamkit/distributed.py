"""Processes that train together: their start, sums over them, barriers, and the units of a sharded model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from dreamkit.errors import (
    CacheError,
    CheckpointError,
    DreamkitError,
    OutputError,
    SourceError,
    TrainingError,
    describe_value,
)
from dreamkit.peers import watching

TIMEOUT: Final = "DREAMKIT_TIMEOUT"  # environment variable: minutes
MINUTES: Final = 30.0  # of a meeting of all processes: one of them may index data or load weights
MOST_MINUTES: Final = 60.0 * 24 * 7

_owns_group = False  # flag: this module has set up the group of processes

# Errors that one process raises in place of another, by their names.
_SHARED_ERRORS: Final[dict[str, type[DreamkitError]]] = {
    error.__name__: error for error in (CacheError, CheckpointError, OutputError, SourceError)
}


def join() -> torch.device:
    """Return the device of this process. Under `torchrun`, this call joins the other processes.

    A group of processes that the program has set up before is used as it is, on its current CUDA device or the CPU.

    Raises:
        TrainingError: `DREAMKIT_TIMEOUT` is not a number of minutes.
    """
    global _owns_group
    timeout = meeting_timeout()
    if dist.is_initialized():
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    from accelerate import PartialState  # takes a second to import

    options: dict[str, Any] = {"cpu": not torch.cuda.is_available(), "timeout": timeout}
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        options["backend"] = "cuda:nccl,cpu:gloo"  # tensors of offloaded shards are on the host
    device: torch.device = PartialState(**options).device
    _owns_group = dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def join_alone() -> None:
    """Set up a group of this process alone, if there is none: FSDP needs one."""
    global _owns_group
    if not dist.is_initialized():
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        _owns_group = True


def leave() -> None:
    """Leave the other processes at the end of a command: threads of a group must not outlive the interpreter.

    A group that the program has set up stays.
    """
    global _owns_group
    if _owns_group and dist.is_initialized():
        dist.destroy_process_group()
    _owns_group = False


def meeting_timeout() -> timedelta:
    """Return how long processes wait for each other: the minutes of `DREAMKIT_TIMEOUT`, or 30.

    Raises:
        TrainingError: the variable is not a number of minutes above 0, up to a week.
    """
    text = os.environ.get(TIMEOUT, "")
    try:
        minutes = float(text) if text else MINUTES
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MOST_MINUTES:
        raise TrainingError(
            f"{TIMEOUT}: expected a number of minutes above 0 and up to {MOST_MINUTES:.0f}, got "
            f"{describe_value(text)}; set or remove the environment variable"
        )
    return timedelta(minutes=minutes)


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_processes() -> int:
    """Return the number of processes of this machine, as `torchrun` sets it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def local_rank() -> int:
    """Return the number of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def is_main() -> bool:
    """Return True in the one process that writes files and prints messages."""
    return rank() == 0


@contextmanager
def watched(hint: Callable[[], str]) -> Iterator[None]:
    """Let the processes watch each other in the block, which every process must enter; see `peers.watching`."""

    def share(value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    with watching(rank(), world_size(), share, hint):
        yield


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
    if isinstance(tensor, DTensor):
        # an offloaded shard is gathered on the device of its mesh
        on_mesh: Any = tensor.to(tensor.device_mesh.device_type)
        tensor = on_mesh.full_tensor()
    return tensor.cpu()


def units(model: nn.Module) -> list[nn.Module]:
    """Return the modules of `model` that are sharded on their own; see `unit_methods`.

    Children come before parents: a parent unit owns the tensors that its children leave.
    """
    methods = unit_methods(model)
    return [module for module in reversed([*model.modules()][1:]) if module in methods]


def unit_methods(model: nn.Module) -> dict[nn.Module, set[str]]:
    """Return the modules of `model` that are sharded on their own, with the methods called beside their `forward`.

    A module around them names their classes: a model of transformers or diffusers in `_no_split_modules`, a part in
    `shard_units`.
    """
    methods: dict[nn.Module, set[str]] = {}
    for owner in model.modules():
        names = (*(getattr(owner, "_no_split_modules", None) or ()), *getattr(owner, "shard_units", ()))
        classes: dict[str, set[str]] = {}
        for name, _, method in (name.partition(".") for name in names):
            classes.setdefault(name, set()).update({method} - {""})
        for module in owner.modules() if classes else ():
            if type(module).__name__ in classes:
                methods.setdefault(module, set()).update(classes[type(module).__name__])
    return methods


class Region(NamedTuple):
    """A part of a tensor: its first index and its length in each dimension."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def local_region(tensor: Tensor) -> Region:
    """Return the part of a tensor that this process holds: all of it, unless it is sharded."""
    if not isinstance(tensor, DTensor):
        return Region((0,) * tensor.ndim, tuple(tensor.shape))
    shape, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return Region(tuple(offsets), tuple(shape))


def local(tensor: Tensor) -> Tensor:
    """Return the values of a tensor that this process holds, detached; they share its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_slices(values: Tensor, divided: Tensor) -> Tensor:
    """Sum `values` in place over the processes that have the slices of the tensor `divided`; return them.

    Each of these processes must call this function.
    """
    if isinstance(divided, DTensor):
        mesh = divided.device_mesh
        for dimension, placement in enumerate(divided.placements):
            if placement.is_shard() and mesh.size(dimension) > 1:
                dist.all_reduce(values, group=mesh.get_group(dimension))
    return values


def sliced_like(divided: Tensor, own: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the tensor of this `shape` whose slice in this process is `own`, with the rows of that of `divided`.

    It shares the memory of `own`. Of a tensor that is not sharded, the slice is all.
    """
    if not isinstance(divided, DTensor):
        return own
    stride = torch.empty(*shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), stride, own.dtype)
    # `DTensor.from_local` would move an offloaded slice to the device of the mesh
    spec = DTensorSpec(divided.device_mesh, divided.placements, tensor_meta=meta)
    return DTensor(own, spec, requires_grad=False)


def is_first_replica(tensor: Tensor) -> bool:
    """Return True in the first of the processes that hold the same values of a tensor."""
    if not isinstance(tensor, DTensor):
        return is_main()
    coordinates = tensor.device_mesh.get_coordinate() or ()
    return all(
        index == 0
        for index, placement in zip(coordinates, tensor.placements, strict=True)
        if isinstance(placement, Replicate)
    )


def gathered(value: Any) -> list[Any]:
    """Return the plain values of all processes, in their order. Every process must call this function."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def of_all(values: Iterable[str]) -> list[str]:
    """Return the texts of all processes, each once. Every process must call this function."""
    return [*dict.fromkeys(value for each in gathered([*values]) for value in each)]


def is_sharded(model: nn.Module) -> bool:
    """Return True if processes share the parameters of `model`."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def together_if_sharded(model: nn.Module) -> AbstractContextManager[None]:
    """Return the block of `together` for a sharded model, which all processes load; a whole model is loaded alone."""
    return together() if is_sharded(model) else nullcontext()


@contextmanager
def together() -> Iterator[None]:
    """Raise the error of one process in all of them, at the end of a block. Every process must enter the block.

    Within the block, processes may meet only in ways that the error of one does not prevent.

    Raises:
        DreamkitError: of the class and with the message of the first process with an error.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    reasons = gathered(None if error is None else (type(error).__name__, str(error) or repr(error)))
    if error is not None:
        raise error
    for name, message in filter(None, reasons):
        raise _SHARED_ERRORS.get(name, TrainingError)(message)
