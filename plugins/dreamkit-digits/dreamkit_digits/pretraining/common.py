"""Helpers of all pretraining loops: seeds, pictures as tensors, batches, schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dreamkit_digits import digits

WARMUP_STEPS = 100
EMA_DECAY = 0.998


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


def averaged(module: nn.Module) -> AveragedModel:
    """Return an exponential moving average of a module's parameters: a diffusion model samples better with it."""
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    average.update_parameters(
        module
    )  # the first call only copies: the average starts at the initial parameters
    return average
