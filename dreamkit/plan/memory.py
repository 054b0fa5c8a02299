"""Memory of a model on each device: all of it, or under FSDP a share and what is gathered for a while."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dreamkit.distributed import units
from dreamkit.plan.live_bytes import Bytes

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


def memory_of(model: nn.Module, processes: int) -> Memory:
    """Return the memory of `model` on each of `processes` devices, before anything is computed.

    Call `model.set_trainable` first. Under FSDP (more than one process) every parameter is divided along its first
    dimension and buffers are not; see `dreamkit.training.sharding`.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(shard_bytes(parameter, processes) for parameter in model.parameters())
    gradients = sum(shard_bytes(parameter, processes) for parameter in trained)
    return Memory(
        weights=weights + total_bytes(model.buffers()),
        states=ADAM_STATES * gradients,
        gathered=_gathered_bytes(_fsdp_groups(model)) if processes > 1 else 0,
        computing=Bytes(),
        gradients=gradients,
    )


def gradient_bytes(model: nn.Module, processes: int) -> dict[str, int]:
    """Return the bytes of each parameter's gradient on one device during the backward pass, by name."""
    # the root's gradients stay whole until the end of the backward pass
    root = {id(parameter) for parameter in _fsdp_groups(model)[-1]}
    return {
        name: shard_bytes(parameter, 1 if id(parameter) in root else processes)
        for name, parameter in model.named_parameters()
    }


def shard_bytes(parameter: Tensor, processes: int) -> int:
    """Return the bytes of the largest share of a parameter that is divided along its first dimension."""
    if processes == 1 or parameter.dim() == 0:
        return parameter.nbytes
    rows = parameter.shape[0]
    return -(-rows // processes) * (parameter.nbytes // rows) if rows else 0


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _fsdp_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each FSDP unit; those of the root come last."""
    grouped: set[int] = set()
    groups = []
    for module in (*units(model), model):
        own = [parameter for parameter in module.parameters() if id(parameter) not in grouped]
        grouped |= {id(parameter) for parameter in own}
        groups.append(own)
    return groups


def _gathered_bytes(groups: list[list[nn.Parameter]]) -> int:
    """Return the most that FSDP gathers from other devices at once.

    These are the root's parameters during the whole pass, those of the current and of the next block, and the whole
    gradients of one block.
    """
    *blocks, root = groups
    largest = max(blocks, key=total_bytes, default=[])
    gradients = total_bytes(parameter for parameter in largest if parameter.requires_grad)
    return total_bytes(root) + 2 * total_bytes(largest) + gradients
