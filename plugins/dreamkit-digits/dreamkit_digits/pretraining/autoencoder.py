"""The tiny VAE: 16 x 16 x 3 pixels to 8 x 8 x 4 latents of unit variance."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from dreamkit_digits import digits
from dreamkit_digits.judge import Judge
from dreamkit_digits.pretraining import common

STEPS = 1000
BATCH = 48
RATE = 2e-3
KL_WEIGHT = 2e-4
"""Weight beside the mean squared error of a pixel: keeps latents smooth and images sharp."""
LARGEST_SHIFT = 2
"""Pixels by which training pictures are moved, so that the VAE does not memorise the 1,400."""


def train(folder: Path, steps: int = STEPS) -> None:
    """Train the VAE and write it to `folder` in float16, with the scaling factor that its latents need."""
    generator = common.seeded(1)
    pictures, _ = common.training_pictures()
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=digits.IMAGE_SIZE,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
    )
    optimizer, schedule = common.cosine_adamw(vae.parameters(), RATE, steps)
    for chosen in common.batches(len(pictures), BATCH, steps, "vae", generator):
        moves = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (2,), generator=generator).tolist()
        images = pictures[chosen].roll(moves, dims=(2, 3))
        posterior = vae.encode(images).latent_dist
        error = functional.mse_loss(vae.decode(posterior.sample()).sample, images)
        loss = error + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        spread = vae.encode(pictures).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=round(1 / float(spread), 4))
    vae.half().save_pretrained(folder)


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """Return the error and the legibility of held-out digits after encoding and decoding."""
    vae = AutoencoderKL.from_pretrained(folder).eval()
    heldout = digits.load("heldout")
    images = common.to_tensor(heldout.pixels)
    latents = vae.encode(images).latent_dist.mode()
    rebuilt = vae.decode(latents).sample
    scaled = latents * vae.config.scaling_factor
    return {
        "heldout_rmse_of_255": float((rebuilt - images).pow(2).mean().sqrt()) * 127.5,
        "heldout_judge_accuracy": Judge.train().accuracy(common.to_pixels(rebuilt), heldout.labels),
        "latent_mean": float(scaled.mean()),
        "latent_std": float(scaled.std()),
        "parameters": vae.num_parameters(),
    }
