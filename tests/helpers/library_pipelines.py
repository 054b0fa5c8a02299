"""Folders in diffusers' layout, and drawings from them by diffusers' own pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from dreamkit_diffusers import networks
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import condition_of, latents_of, seeded, tiny_config

LIBRARY_WARNINGS = [
    # diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    # its pipeline warns of the settings that it replaces
    pytest.mark.filterwarnings("ignore:The configuration file of:FutureWarning"),
]
NETWORKS = {
    network.name: network
    for network in (
        networks.UNET,
        networks.SD3_TRANSFORMER,
        networks.SANA_TRANSFORMER,
        networks.KL,
        networks.DC,
    )
}
STEPS = 4
PIPELINES: dict[Any, Any] = {
    StableDiffusion: diffusers.StableDiffusionPipeline,
    SDXL: diffusers.StableDiffusionXLPipeline,
    SD3: diffusers.StableDiffusion3Pipeline,
    Sana: diffusers.SanaPipeline,
}
ABSENT: dict[Any, tuple[str, ...]] = {
    StableDiffusion: ("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
    SDXL: ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    SD3: (
        *("text_encoder", "text_encoder_2", "text_encoder_3"),
        *("tokenizer", "tokenizer_2", "tokenizer_3"),
    ),
    Sana: ("text_encoder", "tokenizer"),
}


def write_folder(cls: Any, folder: Path, **changes: dict[str, Any]) -> Path:
    """Write a tiny model of a decoder with random weights, saved by diffusers, with values of its configs changed."""
    config = tiny_config(cls, **changes).config
    torch.manual_seed(0)
    for name, model in cls.layout.models.items():
        model.model_class(**config[name]).save_pretrained(folder / name)
    values = {"_class_name": cls.layout.schedulers.default, "clip_sample": False, **config["scheduler"]}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    return folder


def pipeline(cls: Any, folder: Path) -> Any:
    """Load diffusers' pipeline of a decoder from a folder."""
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    parts = {
        name: model.model_class.from_pretrained(folder / name, torch_dtype=torch.float32)
        for name, model in cls.layout.models.items()
    }
    parts["scheduler"] = getattr(diffusers, config["_class_name"]).from_pretrained(folder / "scheduler")
    parts |= dict.fromkeys(ABSENT[cls])
    if cls is StableDiffusion:
        parts["requires_safety_checker"] = False
    if cls is SDXL:
        parts["add_watermarker"] = False
    created = PIPELINES[cls](**parts)
    created.set_progress_bar_config(disable=True)
    return created


def drawings(
    cls: Any, folder: Path, guidance: float = 3.0, library_guidance: float | None = None
) -> tuple[Tensor, Tensor]:
    """Draw two images with the decoder of a folder, and with diffusers' pipeline at its own guidance scale."""
    decoder = cls.from_pretrained(cls.Config(pretrained=str(folder))).eval()
    positive, negative = condition_of(decoder), condition_of(decoder, seed=2)
    latents = latents_of(2)
    common: dict[str, Any] = {
        "prompt_embeds": positive.context,
        "negative_prompt_embeds": negative.context,
        "num_inference_steps": STEPS,
        "guidance_scale": guidance if library_guidance is None else library_guidance,
        "latents": latents,
        "generator": seeded(9),
        "output_type": "pt",
    }
    if positive.pooled is not None:
        common["pooled_prompt_embeds"] = positive.pooled
        common["negative_pooled_prompt_embeds"] = negative.pooled
    size = None
    if cls is Sana:
        size, latents = (32, 32), latents_of(2, side=16)
        masks = {
            name: torch.ones(2, 5) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
        }
        common |= {
            "prompt": None,
            "negative_prompt": None,
            "height": 32,
            "width": 32,
            "latents": latents,
            **masks,
        }
        common["use_resolution_binning"] = False
    with torch.no_grad():
        expected = pipeline(cls, folder)(**common).images
    images = decoder.draw(
        positive, negative, steps=STEPS, guidance=guidance, latents=latents, size=size, generators=seeded(9)
    )
    return images, expected
