"""Decoders with weights as they are stored, mapped from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from stored_weights import assert_stored_equals
from tiny_decoders import tiny_decoder


def save(decoder: Any, folder: Path, **types: torch.dtype) -> None:
    for name in decoder.layout.models:
        model = decoder.get_submodule(name).to(types.get(name, torch.float32))
        model.save_pretrained(folder / name, max_shard_size="10KB")
    decoder.scheduler().save_pretrained(folder / "scheduler")


@pytest.mark.parametrize("cls", [StableDiffusion, SDXL, SD3, Sana])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_decoder_as_stored_is_the_loaded_one_after_a_cast(
    cls: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    decoder = tiny_decoder(cls)
    save(decoder, tmp_path, **dict.fromkeys(decoder.layout.models, dtype))
    assert len([*tmp_path.rglob("*.safetensors")]) > 2
    assert_stored_equals(cls, cls.Config(pretrained=str(tmp_path)), tmp_path, dtype=dtype)


def test_network_and_autoencoder_may_be_stored_in_two_types(tmp_path: Path) -> None:
    save(tiny_decoder(StableDiffusion), tmp_path, unet=torch.float16)
    part = StableDiffusion.from_stored(StableDiffusion.Config(pretrained=str(tmp_path)))
    assert part is not None
    assert (part.unet.dtype, part.vae.dtype) == (torch.float16, torch.float32)
