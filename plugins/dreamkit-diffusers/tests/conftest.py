"""A tiny Stable Diffusion as a part and as a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import tiny_decoder


@pytest.fixture
def decoder() -> Any:
    return tiny_decoder(StableDiffusion)


@pytest.fixture(scope="session")
def save() -> Callable[..., None]:
    """A function that writes a decoder into a folder in diffusers' layout."""

    def write(decoder: StableDiffusion, folder: Path, safetensors: bool = True) -> None:
        decoder.unet.save_pretrained(folder / "unet", safe_serialization=safetensors)
        decoder.vae.save_pretrained(folder / "vae", safe_serialization=safetensors)
        decoder.schedule.save_pretrained(folder / "scheduler")

    return write


@pytest.fixture
def folder(decoder: StableDiffusion, save: Callable[..., None], tmp_path: Path) -> Path:
    save(decoder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    """A function that changes keys of a JSON file."""

    def change(file: Path, **values: Any) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change
