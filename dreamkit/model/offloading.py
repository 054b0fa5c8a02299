"""Parts that wait in the host's memory: one at a time is on the device, from its first use to that of another.

accelerate's hooks do the same around `forward`. A part computes in more methods than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from dreamkit.parts.part import Part

HOST: Final = torch.device("cpu")
# the methods that compute with a part's tensors, by the part's name
METHODS: Final[dict[str, tuple[str, ...]]] = {
    "language_model": ("embed", "forward", "final_norm", "head", "logits", "library_forward"),
    "vision_encoder": ("forward", "library_forward"),
    "image_decoder": (
        *("posterior", "encode", "decode", "timesteps", "add_noise", "denoise", "loss", "library_forward"),
    ),
}


class Turns:
    """The turns of a model's parts on a device. A part that `bring` names goes there, and the one before it leaves.

    Attributes:
        present: the part on the device.
        moves: number of parts that came to the device so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.present: nn.Module | None = None
        self.moves = 0

    def bring(self, part: nn.Module) -> None:
        """Move `part` to the device, unless it is there."""
        if self.present is part:
            return
        if self.present is not None:
            self.present.to(HOST)
            self.present = None  # if there is no room for the next one, none is there
        part.to(self.device)
        self.present = part
        self.moves += 1


class _Hook:
    """A method of an offloaded part, which brings the part to the device first."""

    def __init__(self, turns: Turns, part: Part, method: Callable[..., Any]) -> None:
        self.turns, self.part, self.method = turns, part, method

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.turns.bring(self.part)
        return self.method(*args, **named)


def offload(parts: Mapping[str, Part], device: torch.device) -> Turns:
    """Move `parts`, by their names in a model, to the host's memory, and each to `device` while it is used."""
    turns = Turns(device)
    for name, part in parts.items():
        part.to(HOST)
        for method in METHODS[name]:
            setattr(part, method, _Hook(turns, part, getattr(part, method)))
    return turns


def is_offloaded(part: Part) -> bool:
    """Return True if the part is one that `offload` moves."""
    return any(isinstance(value, _Hook) for value in vars(part).values())


def stop_offloading(parts: Mapping[str, Part]) -> None:
    """Undo `offload`; the parts stay where they are."""
    for part in parts.values():
        for name in [name for name, value in vars(part).items() if isinstance(value, _Hook)]:
            delattr(part, name)
