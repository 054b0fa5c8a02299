"""What each device keeps of a model: all of it, or its share under FSDP and what is gathered for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dreamkit.distributed import units
from dreamkit.plan.live_bytes import Bytes

Device = Literal["cuda", "cpu"]

ADAM_STATES = 2  # of a parameter's size: the running means of the gradient and of its square


@dataclass(frozen=True)
class Memory:
    """Bytes of live tensors on the fullest device, in the two moments of a step that can be the fullest.

    `computing`: at the peak of forward and backward, when gradients are not all there yet, or no longer all
    gathered. `updating`: in the optimizer's step, when activations are gone, but every gradient is there.
    """

    weights: int
    states: int
    gathered: int
    computing: Bytes
    gradients: int
    scratch: int

    @property
    def while_computing(self) -> int:
        return self.weights + self.states + self.gathered + self.computing.total

    @property
    def while_updating(self) -> int:
        return self.weights + self.states + self.gradients + self.scratch

    @property
    def peak(self) -> int:
        return max(self.while_computing, self.while_updating)


@dataclass(frozen=True)
class Shares:
    """What a device keeps, in bytes, of a model that `processes` train together.

    `gradient_bytes` is what it keeps of each parameter's gradient during the backward pass, by name.
    """

    weights: int
    gradients: int
    gathered: int
    scratch: int
    gradient_bytes: Mapping[str, int]

    @property
    def states(self) -> int:
        return ADAM_STATES * self.gradients

    def memory(self, computing: Bytes) -> Memory:
        return Memory(self.weights, self.states, self.gathered, computing, self.gradients, self.scratch)


def shares(model: nn.Module, processes: int, device: Device) -> Shares:
    """What is kept of `model`, whose trainable parameters are known, on each of `processes` devices.

    Under FSDP (more than one process) every parameter is divided along its first dimension, buffers are not; see
    `dreamkit.distributed.shard`.
    """
    groups = _groups(model)
    root = {id(parameter) for parameter in groups[-1]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(shard_bytes(parameter, processes) for parameter in model.parameters())
    gradients = sum(shard_bytes(parameter, processes) for parameter in trained)
    return Shares(
        weights=weights + total_bytes(model.buffers()),
        gradients=gradients,
        gathered=_gathered(groups) if processes > 1 else 0,
        scratch=_scratch(trained, processes, device),
        # the root's gradients wait in full for the end of the backward pass
        gradient_bytes={
            name: shard_bytes(parameter, 1 if id(parameter) in root else processes)
            for name, parameter in model.named_parameters()
        },
    )


def shard_bytes(parameter: Tensor, processes: int) -> int:
    """Bytes of the largest share of a parameter that is divided along its first dimension."""
    if processes == 1 or parameter.dim() == 0:
        return parameter.nbytes
    rows = parameter.shape[0]
    return -(-rows // processes) * (parameter.nbytes // rows) if rows else 0


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each FSDP unit; the last one's are the root's."""
    taken: set[int] = set()
    groups = []
    for module in (*units(model), model):
        own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        taken |= {id(parameter) for parameter in own}
        groups.append(own)
    return groups


def _gathered(groups: list[list[nn.Parameter]]) -> int:
    """What FSDP gathers of other devices' shares at once: the root's parameters for the whole pass, those of the block
    that runs and of the next one, and the whole gradients of one."""
    *blocks, root = groups
    largest = max(blocks, key=total_bytes, default=[])
    gradients = total_bytes(parameter for parameter in largest if parameter.requires_grad)
    return total_bytes(root) + 2 * total_bytes(largest) + gradients


def _scratch(trained: list[nn.Parameter], processes: int, device: Device) -> int:
    """What torch's AdamW makes in a step beside its states: the root of the second moment and what it is divided to.

    On a GPU it makes one of all parameters together, unless they are sharded; else two, of one after the other.
    """
    if device == "cuda" and processes == 1:
        return total_bytes(trained)
    return 2 * max((shard_bytes(parameter, processes) for parameter in trained), default=0)
