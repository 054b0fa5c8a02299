"""The miniature Stable Diffusion, as a recipe's `config`, as a part, and as a folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit_diffusers.stable_diffusion import StableDiffusion

torch.set_num_threads(1)

TINY: dict[str, dict[str, Any]] = StableDiffusion.tiny_config().config or {}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """The small config, with keys of its parts changed: `tiny(unet={"sample_size": 4})`."""

    def config(**changes: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(TINY)
        for part, values in changes.items():
            changed[part] |= values
        return changed

    return config


@pytest.fixture(scope="session")
def make(tiny: Callable[..., dict[str, Any]]) -> Callable[..., StableDiffusion]:
    """A small decoder with random weights: `make(seed=1, scheduler={"prediction_type": "v_prediction"})`."""

    def decoder(seed: int = 0, snr_gamma: float | None = None, **changes: dict[str, Any]) -> StableDiffusion:
        torch.manual_seed(seed)
        return StableDiffusion.from_config(
            StableDiffusion.Config(config=tiny(**changes), snr_gamma=snr_gamma)
        )

    return decoder


@pytest.fixture
def decoder(make: Callable[..., StableDiffusion]) -> StableDiffusion:
    return make()


@pytest.fixture(scope="session")
def save() -> Callable[..., None]:
    """Writes a decoder into a folder in diffusers' layout."""

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
    """Changes keys of a JSON file."""

    def change(file: Path, **values: Any) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change
