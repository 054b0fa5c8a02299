"""One training step on tensors that have shapes but no data, computed as a CPU would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from dreamkit.data.batch import Batch
from dreamkit.errors import DreamkitError, describe_error
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import full_float64, half_precision
from dreamkit.plan.live_bytes import Bytes, LiveBytes
from dreamkit.plan.memory import Device
from dreamkit.recipe.sections import Recipe


def measure_step(
    model: DreamModel,
    batch: Batch,
    recipe: Recipe,
    gradient_bytes: Mapping[str, int],
    passes: int,
    device: Device,
) -> tuple[Bytes, int]:
    """Return the bytes at the peak of the forward and backward pass, and the FLOPs of all `passes` of an update.

    The bytes leave out weights and optimizer states. `gradient_bytes` are those of each parameter's gradient on one
    device, by name. `model` is on the meta device and cannot be used afterwards. Fused attention, autocast and gradient
    checkpointing behave as in a real step, because the same code runs.

    Raises:
        DreamkitError: a part reads the values of tensors.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return fakes.fake_tensor_converter.from_meta_and_device(fakes, meta, torch.device("cpu"))

    replace_tensors(model, fake)
    batch = batch.with_tensors(fake)
    tensors = tree_leaves(batch.tensor_fields())
    bytes_of = {parameter: gradient_bytes[name] for name, parameter in model.named_parameters()}
    live = LiveBytes(uncounted=[*model.parameters(), *model.buffers()])
    with fakes, live:
        for tensor in tensors:
            live.count(tensor)
        for parameter in model.parameters():
            if parameter.requires_grad:
                if passes > 1:
                    parameter.grad = torch.zeros_like(parameter)
                    live.recount(parameter.grad, "gradients", bytes_of[parameter])
                parameter.register_post_accumulate_grad_hook(
                    lambda p: live.recount(p.grad, "gradients", bytes_of[p])
                )
        try:
            with full_float64(recipe.train.precision == "float64"):
                with half_precision(recipe.train.precision, "cpu"):
                    loss = model(batch).loss
                loss.backward()
        except Exception as error:  # of any part, and of the library behind it
            raise DreamkitError(
                "cannot plan a step of this model, because one of its parts reads the values of tensors: "
                f"{describe_error(error)}; plan it with another part in its place"
            ) from error
    # All batches of an update are in the host's memory from its beginning. A GPU gets them one by one.
    others = passes - 1 if device == "cpu" else 0
    waiting = others * sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    return live.peak.plus("activations", waiting), live.flops * passes


def replace_tensors(model: nn.Module, fake: Callable[[Tensor], Tensor]) -> None:
    """Replace parameters, buffers and other meta tensors of modules by fakes."""
    fakes: dict[int, Tensor] = {}
    originals: list[Tensor] = []  # kept alive, so that their ids stay unique

    def replacement(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            originals.append(tensor)
            new = fake(tensor)
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        return fakes[id(tensor)]

    for module in model.modules():
        owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owner in owners:
            owner.update({name: replacement(tensor) for name, tensor in owner.items() if tensor is not None})
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                module.__dict__[name] = replacement(value)
