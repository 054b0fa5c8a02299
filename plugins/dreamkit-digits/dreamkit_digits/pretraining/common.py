"""Helpers of all pretraining loops: seeds, pictures as tensors, batches, schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from dreamkit_digits import digits

WARMUP_STEPS = 100


def seeded(seed: int) -> torch.Generator:
    """Seed torch's global generator and return one of its own for the batches."""
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turn (N, H, W, 3) uint8 pixels into (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """Turn (N, 3, H, W) floats, clipped to [-1, 1], into (N, H, W, 3) uint8 pixels."""
    scaled = (images.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def training_pictures() -> tuple[Tensor, Tensor]:
    """Return the training digits as (N, 3, 16, 16) in [-1, 1] and their labels (N,) int64."""
    train = digits.load("train")
    return to_tensor(train.pixels), torch.from_numpy(np.array(train.labels))


def batches(size: int, batch: int, steps: int, name: str, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` batches of `batch` random indices below `size`, with a progress bar called `name`."""
    for _ in progress(range(steps), name):
        yield torch.randint(size, (batch,), generator=generator)


def progress(steps: Iterable[int], name: str) -> Iterable[int]:
    """Show a progress bar called `name` while going through `steps`."""
    return tqdm(steps, desc=name, unit="step", mininterval=2.0)


def cosine_adamw(
    parameters: Iterable[nn.Parameter], rate: float, steps: int, decay: float = 0.01
) -> tuple[AdamW, LambdaLR]:
    """Return AdamW at learning rate `rate`, warmed up and then lowered along a cosine to zero at `steps`."""
    optimizer = AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=decay)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        return warm * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))

    return optimizer, LambdaLR(optimizer, factor)


class Averaged:
    """An exponential moving average of a module's parameters: a diffusion model samples better with it."""

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self._module = module
        self._decay = decay
        self._means = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average one step towards the module's present parameters."""
        torch._foreach_lerp_(self._means, list(self._module.parameters()), 1 - self._decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the module its averaged parameters."""
        for parameter, mean in zip(self._module.parameters(), self._means, strict=True):
            parameter.copy_(mean)


def parameter_count(module: nn.Module) -> int:
    """Return the number of the module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
