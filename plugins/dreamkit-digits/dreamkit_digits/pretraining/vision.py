"""The tiny SigLIP: a vision tower trained against the digits' names with the sigmoid loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from dreamkit_digits import digits
from dreamkit_digits.pretraining import common

STEPS = 2200
BATCH = 128
RATE = 2e-3
DECAY = 0.05
WIDTH = 64
LAYER = -2
"""The hidden state that the language model reads."""

LARGEST_TURN = math.radians(12)
LARGEST_SHEAR = 0.15
LARGEST_STRETCH = 0.15
LARGEST_SHIFT = 0.2
"""In half pictures: 0.2 is 1.6 pixels."""
NOISE = 0.15
"""Largest standard deviation of pixel noise, where pixels lie in [-1, 1]."""


class Names(nn.Module):
    """The text side: one learned vector a digit's name, with SigLIP's temperature and bias.

    Ten names need no deeper text tower. The vectors are discarded after pretraining.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(10, WIDTH))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the sigmoid loss of (N, T, 64) features against the names, given labels (N,)."""
        images = functional.normalize(features, dim=-1)
        names = functional.normalize(self.vectors, dim=-1)
        logits = images @ names.T * self.log_temperature.exp() + self.bias
        signs = 2.0 * functional.one_hot(labels, 10)[:, None] - 1
        return -functional.logsigmoid(signs * logits).sum(-1).mean()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, slant, stretch, move, dim and sprinkle (N, 3, H, W) pictures, each in its own way."""

    def uniform(largest: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * largest

    turn, shear = uniform(LARGEST_TURN), uniform(LARGEST_SHEAR)
    wide, high = 1 + uniform(LARGEST_STRETCH), 1 + uniform(LARGEST_STRETCH)
    rows = [
        torch.stack([wide * turn.cos(), shear - turn.sin(), uniform(LARGEST_SHIFT)], dim=-1),
        torch.stack([turn.sin(), high * turn.cos(), uniform(LARGEST_SHIFT)], dim=-1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    # What comes in from outside the picture is paper: 0 here, -1 in the pictures.
    paper = functional.grid_sample(images + 1, grid, align_corners=False)
    ink = (0.85 + uniform(0.25))[:, None, None, None]
    noise = torch.randn(images.shape, generator=generator) * uniform(NOISE).abs()[:, None, None, None]
    return (paper * ink - 1 + noise).clamp(-1, 1)


def train(folder: Path, steps: int = STEPS) -> None:
    """Train the vision tower and write it, with its image processor, to `folder`."""
    generator = common.seeded(3)
    pictures, labels = common.training_pictures()
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=digits.IMAGE_SIZE,
            patch_size=4,
        )
    )
    names, names_inside = Names(), Names()
    learned = [*tower.parameters(), *names.parameters(), *names_inside.parameters()]
    optimizer, schedule = common.cosine_adamw(learned, RATE, steps, DECAY)
    average: Any = common.averaged(tower)
    for chosen in common.batches(len(pictures), BATCH, steps, "siglip", generator):
        output = tower(augmented(pictures[chosen], generator), output_hidden_states=True)
        # The second term asks every token of the layer that is handed on for the digit. In a tower trained on
        # millions of pictures features are that rich by themselves.
        loss = names(output.pooler_output[:, None], labels[chosen])
        loss = loss + names_inside(output.hidden_states[LAYER], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(tower)
    average.module.save_pretrained(folder)
    side = {"height": digits.IMAGE_SIZE, "width": digits.IMAGE_SIZE}
    SiglipImageProcessor(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """Return how well a linear classifier of the mean feature of layer -2 reads the held-out digits."""
    tower = SiglipVisionModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessor.from_pretrained(folder)
    train, heldout = digits.load("train"), digits.load("heldout")

    def features(part: digits.Digits) -> Tensor:
        pixels = processor(part.images, return_tensors="pt").pixel_values
        return tower(pixels, output_hidden_states=True).hidden_states[LAYER]

    known, unseen = features(train), features(heldout)
    probe = LogisticRegression(max_iter=2000).fit(known.mean(1).numpy(), train.labels)
    return {
        "heldout_linear_probe_accuracy": float(probe.score(unseen.mean(1).numpy(), heldout.labels)),
        "feature_std": float(known.std()),
        "parameters": tower.num_parameters(),
    }
