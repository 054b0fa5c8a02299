"""Memory of a model on each device: all of it, or under FSDP a share and what is gathered for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from dreamkit.build.optimizer_states import EMA, StateTensor, state_of
from dreamkit.distributed import units
from dreamkit.errors import DreamkitError, count
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import float32_modules
from dreamkit.plan.live_bytes import Bytes
from dreamkit.recipe.sections import TrainSection

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Layout:
    """The division of a model among devices.

    `shards` devices share one copy of the weights that are not in the parts `unsharded`. `is_fsdp`: units are gathered
    while they run, in bfloat16 if `is_half`. `is_offloaded`: the shards are in the host's memory.
    """

    shards: int = 1
    is_fsdp: bool = False
    is_half: bool = False
    is_offloaded: bool = False
    unsharded: tuple[str, ...] = ()


ONE_DEVICE: Final = Layout()


def layout_of(train: TrainSection, processes: int, machines: int) -> Layout:
    """Return the layout of a training in this number of processes, one device each, on as many machines.

    Raises:
        DreamkitError: the machines do not divide the processes, or `hybrid` has one process on each.
    """
    each, rest = divmod(processes, machines)
    if rest or not each:
        raise DreamkitError(
            f"expected --processes that {count(machines, 'machine')} share evenly, got {processes}; change one of them"
        )
    if train.sharding == "hybrid" and processes > 1 and each == 1:
        raise DreamkitError(
            "train.sharding: hybrid shards over the processes of a machine, got 1 on each; pass more --processes or "
            "fewer --machines, or set train.sharding=full"
        )
    return Layout(
        shards={"none": 1, "hybrid": each, "full": processes}[train.sharding],
        is_fsdp=processes > 1 or train.cpu_offload,
        is_half=train.precision == "bfloat16",
        is_offloaded=train.cpu_offload,
        unsharded=train.unsharded,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of live tensors on the fullest device, at the two moments of a step that can be the peak.

    `computing`: the peak of the forward and backward pass, when gradients are not yet complete or no longer gathered.
    `gradients`: every gradient in the optimizer's step, which has no activations.
    `averages`: the moving averages of `train.ema`.
    `on_host`: offloaded weights, gradients, optimizer states and averages of one process, which no device holds.
    """

    weights: int
    states: int
    averages: int
    gathered: int
    computing: Bytes
    gradients: int
    on_host: int = 0

    @property
    def terms(self) -> dict[str, tuple[int, int]]:
        """The bytes of each term by name, in the forward and backward pass and in the optimizer's step."""
        return {
            "weights": (self.weights, self.weights),
            "gathered by FSDP": (self.gathered, 0),
            "optimizer states": (self.states, self.states),
            "moving averages": (self.averages, self.averages),
            "gradients": (self.computing.gradients, self.gradients),
            "activations": (self.computing.activations, 0),
        }

    @property
    def while_computing(self) -> int:
        return sum(computing for computing, _ in self.terms.values())

    @property
    def while_updating(self) -> int:
        return sum(updating for _, updating in self.terms.values())

    @property
    def peak(self) -> int:
        return max(self.while_computing, self.while_updating)


def memory_of(model: DreamModel, train: TrainSection, layout: Layout = ONE_DEVICE) -> Memory:
    """Return the memory of `model` on each device of a layout, before anything is computed.

    Call `model.set_trainable` first. Under FSDP every parameter is divided along its first dimension and buffers are
    not; see `dreamkit.training.sharding`.
    """
    whole = _unsharded(model, layout)
    divided = [parameter for parameter in model.parameters() if parameter not in whole]
    trained = [parameter for parameter in divided if parameter.requires_grad]
    weights = sum(shard_bytes(parameter, layout.shards) for parameter in divided)
    gradients = sum(shard_bytes(parameter, layout.shards) for parameter in trained)
    states = [each for parameter in trained for each in state_of(parameter, train).items()]
    averages = sum(_state_bytes(each, layout.shards) for name, each in states if name == EMA)
    others = sum(_state_bytes(each, layout.shards) for name, each in states if name != EMA)
    on_host = weights + gradients + others + averages if layout.is_offloaded else 0
    return Memory(
        weights=(0 if layout.is_offloaded else weights) + total_bytes((*whole, *model.buffers())),
        states=0 if layout.is_offloaded else others,
        averages=0 if layout.is_offloaded else averages,
        gathered=_gathered_bytes(_fsdp_groups(model, whole), layout) if layout.is_fsdp else 0,
        computing=Bytes(),
        gradients=0 if layout.is_offloaded else gradients,
        on_host=on_host,
    )


def _state_bytes(state: StateTensor, shards: int) -> int:
    """Return the bytes of the largest share of a tensor of the optimizer's state."""
    return shard_bytes(
        torch.empty(state.shape, dtype=state.dtype, device="meta"), shards if state.is_divided else 1
    )


def gradient_bytes(model: DreamModel, layout: Layout = ONE_DEVICE) -> dict[str, int]:
    """Return the bytes of each parameter's gradient on one device during the backward pass, by name."""
    # the root's gradients stay whole until the end of the backward pass
    root = {*_fsdp_groups(model, _unsharded(model, layout))[-1]}

    def size(parameter: nn.Parameter) -> int:
        if parameter in root:
            return parameter.nbytes
        return 0 if layout.is_offloaded else shard_bytes(parameter, layout.shards)

    return {name: size(parameter) for name, parameter in model.named_parameters()}


def gather_in_half(model: DreamModel, layout: Layout) -> None:
    """Cast the parameters, on the meta device, of the units that FSDP gathers in bfloat16.

    Autocast then makes no copies of them, as in a training.
    """
    if not (layout.is_fsdp and layout.is_half):
        return
    in_float32 = {parameter for module in float32_modules(model) for parameter in module.parameters()}
    for group in _fsdp_groups(model, _unsharded(model, layout) | in_float32)[:-1]:
        for parameter in group:
            parameter.data = parameter.data.bfloat16()


def shard_bytes(parameter: Tensor, processes: int) -> int:
    """Return the bytes of the largest share of a parameter that is divided along its first dimension."""
    if processes == 1 or parameter.dim() == 0:
        return parameter.nbytes
    rows = parameter.shape[0]
    return -(-rows // processes) * (parameter.nbytes // rows) if rows else 0


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _unsharded(model: DreamModel, layout: Layout) -> set[nn.Parameter]:
    """Return the frozen parameters that each device holds whole."""
    parts = [part for name, part in model.parts().items() if layout.is_fsdp and name in layout.unsharded]
    return {parameter for part in parts for parameter in part.parameters() if not parameter.requires_grad}


def _fsdp_groups(model: nn.Module, whole: set[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters of each FSDP unit without those in `whole`; those of the root come last."""
    grouped = {*whole}
    groups = []
    for module in (*units(model), model):
        own = [parameter for parameter in module.parameters() if parameter not in grouped]
        grouped.update(own)
        groups.append(own)
    return groups


def _gathered_bytes(groups: list[list[nn.Parameter]], layout: Layout) -> int:
    """Return the most that FSDP gathers from other devices at once.

    These are the root's parameters during the whole pass, those of the current and of the next block, and the whole
    gradients of one block. Blocks may be gathered in bfloat16; their gradients are reduced in float32.
    """
    *blocks, root = groups
    largest = max(blocks, key=total_bytes, default=[])
    gradients = total_bytes(parameter for parameter in largest if parameter.requires_grad)
    return total_bytes(root) + 2 * total_bytes(largest) // (2 if layout.is_half else 1) + gradients
