"""The device and the dtype that a model generates with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from dreamkit.errors import DreamkitError, describe_value, near_hint
from dreamkit.model.offloading import offload as offload_parts, stop_offloading
from dreamkit.recipe.sections import WITH_SOURCE

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel

AUTO: Final = "auto"
DEVICES: Final = ("cuda", "mps", "cpu")  # in the order of `auto`
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def place(
    model: DreamModel, device: str = AUTO, dtype: str | torch.dtype = AUTO, offload: bool = False
) -> DreamModel:
    """Move a model to a device to generate or evaluate with, in a dtype; return it.

    Tensors that fail in half precision stay in float32, such as SDXL's autoencoder (`Part.float32_tensors`), and so do
    noise, guidance and schedulers. Quantized layers keep their packed weights.

    Args:
        model: changed in place. An earlier `offload` ends.
        device: `cuda`, `mps` or `cpu`; `auto` is the first of these that the machine has.
        dtype: `float32` or `bfloat16`. `auto` is bfloat16 on a GPU that computes in it, and elsewhere the model's own:
            float32, or float64 if its recipe has that precision.
        offload: keep language model, vision encoder and image decoder in the host's memory. Each goes to the device
            when it is used, and leaves when another is. Projectors, dream queries and KV cache stay on the device.

    Raises:
        DreamkitError: an unknown or unavailable device, an unknown dtype, or `offload` without another device.
    """
    return placement(device, dtype, offload).put(model)


@dataclass(frozen=True)
class Placement:
    """A device of this machine, and a dtype for a model there; None keeps the model's own."""

    device: torch.device
    dtype: torch.dtype | None = None
    offload: bool = False

    def put(self, model: DreamModel) -> DreamModel:
        """Move `model` there; return it."""
        parts = model.parts()
        waiting = {name: parts[name] for name in WITH_SOURCE}
        stop_offloading(waiting)
        if not self.offload:
            return model.to(self.device, self.dtype)
        model.to(dtype=self.dtype)
        for name in parts.keys() - waiting.keys():
            parts[name].to(self.device)
        model.dream_queries.data = model.dream_queries.data.to(self.device)
        offload_parts(waiting, self.device)
        return model


def placement(device: str = AUTO, dtype: str | torch.dtype = AUTO, offload: bool = False) -> Placement:
    """Return the placement that the arguments of `place` describe on this machine.

    Raises:
        DreamkitError: as `place`.
    """
    there = available_devices()
    chosen = there[0] if device == AUTO else device
    if chosen not in DEVICES:
        names = (AUTO, *DEVICES)
        raise DreamkitError(
            f"device: expected one of {', '.join(names)}, got {describe_value(device)}{near_hint(device, names)}"
        )
    if chosen not in there:
        raise DreamkitError(f"device: expected one of this machine, {', '.join(there)}, got {chosen}")
    if offload and chosen == "cpu":
        others = [name for name in there if name != "cpu"]
        remedy = f"set device to {' or '.join(others)}" if others else "leave it out: this machine has none"
        raise DreamkitError(f"offload: expected a device beside the CPU to move parts to, got cpu; {remedy}")
    floats = _auto_type(chosen) if dtype == AUTO else float_type(dtype, (AUTO, *DTYPES))
    return Placement(torch.device(chosen), floats, offload)


def available_devices() -> list[str]:
    """Return the kinds of devices of this machine, fastest first."""
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name in DEVICES if is_there[name]]


def float_type(dtype: str | torch.dtype, names: tuple[str, ...] = tuple(DTYPES)) -> torch.dtype:
    """Return a dtype of `DTYPES`, given itself or its name.

    Raises:
        DreamkitError: an unknown one; the message lists `names`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DreamkitError(
            f"dtype: expected one of {', '.join(names)}, got {describe_value(dtype)}{near_hint(name, names)}"
        )
    return DTYPES[name]


def _auto_type(device: str) -> torch.dtype | None:
    """Return the dtype of `auto` on a kind of device; None keeps a model's own."""
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if device == "mps":  # has no float64
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    return None
