"""One training step followed on tensors that have shapes but no data, as the CPU would compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreamkit.data.batch import Batch
from dreamkit.errors import DreamkitError
from dreamkit.model.model import DreamModel
from dreamkit.plan.live_bytes import Bytes, LiveBytes
from dreamkit.recipe.sections import Recipe


@dataclass(frozen=True)
class Measured:
    """What a step keeps in memory on one device, weights and optimizer states aside, and what it computes.

    `computing` is the fullest moment of forward and backward. `flops` are those of all accumulated batches.
    """

    computing: Bytes
    flops: int


def measure(model: DreamModel, batch: Batch, recipe: Recipe, gradient_bytes: Mapping[str, int]) -> Measured:
    """Follows the forward and backward pass of `model`, which is on the meta device and is used up.

    `gradient_bytes` is what a device keeps of the gradient of each parameter, by name. Fused attention, autocast and
    gradient checkpointing do as in a real step, because the same code runs.

    Raises:
        DreamkitError: a part asks for the values of tensors.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return fakes.fake_tensor_converter.from_meta_and_device(fakes, meta, torch.device("cpu"))

    _replace_tensors(model, fake)
    faked = _faked(batch, fake)
    kept = {parameter: gradient_bytes[name] for name, parameter in model.named_parameters()}
    live = LiveBytes(besides=[*model.parameters(), *model.buffers()])
    accumulation = recipe.train.accumulation
    with fakes, live:
        for tensor in _tensors(faked):
            live.count(tensor)
        for parameter in model.parameters():
            if parameter.requires_grad:
                if accumulation > 1:
                    parameter.grad = torch.zeros_like(parameter)
                    live.recount(parameter.grad, "gradients", kept[parameter])
                parameter.register_post_accumulate_grad_hook(
                    lambda p: live.recount(p.grad, "gradients", kept[p])
                )
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bfloat16"):
                loss = model(faked).loss
            loss.backward()
        except Exception as error:  # of any part, and of the library behind it
            raise DreamkitError(
                "a step of this model cannot be planned, because one of its parts asks for the values of tensors: "
                f"{type(error).__name__}: {error}; plan it with another part in its place"
            ) from error
    # all the batches of a step are on the device together
    waiting = (accumulation - 1) * sum(tensor.untyped_storage().nbytes() for tensor in _tensors(faked))
    return Measured(live.peak.plus("activations", waiting), live.flops * accumulation)


def _replace_tensors(model: nn.Module, fake: Callable[[Tensor], Tensor]) -> None:
    """Puts a fake in the place of each parameter and buffer, and of other tensors that modules hold on meta."""
    known: dict[int, Tensor] = {}
    originals: list[Tensor] = []  # kept, so that no two have the same id

    def once(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            originals.append(tensor)
            made = fake(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
        return known[id(tensor)]

    for module in model.modules():
        owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owner in owners:
            owner.update({name: once(tensor) for name, tensor in owner.items() if tensor is not None})
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                module.__dict__[name] = once(value)


def _faked(batch: Batch, fake: Callable[[Tensor], Tensor]) -> Batch:
    def faked(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: faked(item) for name, item in value.items()}
        return fake(value) if isinstance(value, Tensor) else value

    return Batch(**{field.name: faked(getattr(batch, field.name)) for field in fields(batch)})


def _tensors(batch: Batch) -> Iterator[Tensor]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        yield from (
            each
            for each in (value.values() if isinstance(value, dict) else [value])
            if isinstance(each, Tensor)
        )
