"""Memory of a model on each device: all of it, or under FSDP a share and what is gathered for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dreamkit.distributed import units
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import float32_modules
from dreamkit.plan.live_bytes import Bytes
from dreamkit.recipe.sections import TrainSection

Device = Literal["cuda", "cpu"]

ADAM_STATES = 2  # of a parameter's size: the running means of the gradient and of its square


@dataclass(frozen=True)
class Memory:
    """Bytes of live tensors on the fullest device, at the two moments of a step that can be the peak.

    `computing`: the peak of the forward and backward pass, when gradients are not yet complete or no longer gathered.
    `gradients`: every gradient in the optimizer's step, which has no activations and no temporary tensors.
    """

    weights: int
    states: int
    gathered: int
    computing: Bytes
    gradients: int

    @property
    def terms(self) -> dict[str, tuple[int, int]]:
        """The bytes of each term by name, in the forward and backward pass and in the optimizer's step."""
        return {
            "weights": (self.weights, self.weights),
            "gathered by FSDP": (self.gathered, 0),
            "optimizer states": (self.states, self.states),
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


def memory_of(model: DreamModel, train: TrainSection, processes: int) -> Memory:
    """Return the memory of `model` on each of `processes` devices, before anything is computed.

    Call `model.set_trainable` first. Under FSDP (more than one process) every parameter is divided along its first
    dimension and buffers are not; see `dreamkit.training.sharding`. With hybrid sharding, `processes` are those of one
    machine.
    """
    pieces = _pieces(model, train, processes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(shard_bytes(parameter, pieces[parameter]) for parameter in model.parameters())
    gradients = sum(shard_bytes(parameter, pieces[parameter]) for parameter in trained)
    return Memory(
        weights=weights + total_bytes(model.buffers()),
        states=ADAM_STATES * gradients,
        gathered=_gathered_bytes(model, train) if processes > 1 else 0,
        computing=Bytes(),
        gradients=gradients,
    )


def gradient_bytes(model: DreamModel, train: TrainSection, processes: int) -> dict[str, int]:
    """Return the bytes of each parameter's gradient on one device during the backward pass, by name."""
    pieces = _pieces(model, train, processes)
    # the root's gradients stay whole until the end of the backward pass
    root = {*_fsdp_groups(model)[model]}
    return {
        name: shard_bytes(parameter, 1 if parameter in root else pieces[parameter])
        for name, parameter in model.named_parameters()
    }


def halve_units(model: DreamModel) -> None:
    """Give the units of a model on the meta device the dtype in which they are gathered for half precision."""
    in_float32 = float32_modules(model)
    for unit in units(model):
        if unit not in in_float32:
            for parameter in unit.parameters():
                parameter.data = parameter.data.bfloat16()


def _pieces(model: DreamModel, train: TrainSection, processes: int) -> dict[nn.Parameter, int]:
    """Return the number of devices that each parameter is divided among."""
    shards, whole = 1 if train.sharding == "none" else processes, _unsharded(model, train)
    return {parameter: 1 if parameter in whole else shards for parameter in model.parameters()}


def _unsharded(model: DreamModel, train: TrainSection) -> set[nn.Parameter]:
    """Return the frozen parameters of the parts that each device keeps whole."""
    parts = [part for name, part in model.parts().items() if name in train.unsharded]
    return {each for part in parts for each in part.parameters() if not each.requires_grad}


def shard_bytes(parameter: Tensor, processes: int) -> int:
    """Return the bytes of the largest share of a parameter that is divided along its first dimension."""
    if processes == 1 or parameter.dim() == 0:
        return parameter.nbytes
    rows = parameter.shape[0]
    return -(-rows // processes) * (parameter.nbytes // rows) if rows else 0


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _fsdp_groups(model: nn.Module) -> dict[nn.Module, list[nn.Parameter]]:
    """Return the parameters of each FSDP unit; those of the root come last."""
    grouped: set[nn.Parameter] = set()
    groups = {}
    for module in (*units(model), model):
        groups[module] = [parameter for parameter in module.parameters() if parameter not in grouped]
        grouped.update(groups[module])
    return groups


def _gathered_bytes(model: DreamModel, train: TrainSection) -> int:
    """Return the most that FSDP gathers from other devices at once.

    These are the root's parameters during the whole pass, those of the current and of the next block, and the whole
    gradients of one block.
    """
    whole = _unsharded(model, train)
    in_float32 = float32_modules(model)
    blocks: list[tuple[int, int]] = []
    root = 0
    for module, parameters in _fsdp_groups(model).items():
        own = [parameter for parameter in parameters if parameter not in whole]
        is_half = train.precision == "bfloat16" and module not in in_float32
        if module is model:
            root = total_bytes(own)
        else:
            gathered = total_bytes(own) // (2 if is_half else 1)
            blocks.append((gathered, total_bytes(each for each in own if each.requires_grad)))
    largest, gradients = max(blocks, default=(0, 0))
    return root + 2 * largest + gradients
