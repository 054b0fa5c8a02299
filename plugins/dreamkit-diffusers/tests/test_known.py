"""Well-known hub models are described offline, and have their published size."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from dreamkit import ConfigError, SourceError
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion

KNOWN = Path(str(resources.files("dreamkit_diffusers"))) / "known"
SD_VAE, SD3_VAE, DC_AE = 83_653_863, 83_819_683, 312_250_275

# name: decoder, parameters of the network and of the autoencoder, pixels, widths of context and pooled vector
MODELS: dict[str, tuple[Any, int, int, int, int, int | None]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (StableDiffusion, 859_520_964, SD_VAE, 512, 768, None),
    "stabilityai/stable-diffusion-2-1": (StableDiffusion, 865_910_724, SD_VAE, 768, 1024, None),
    "stabilityai/stable-diffusion-2-1-base": (StableDiffusion, 865_910_724, SD_VAE, 512, 1024, None),
    "stabilityai/stable-diffusion-xl-base-1.0": (SDXL, 2_567_463_684, SD_VAE, 1024, 2048, 1280),
    "stabilityai/stable-diffusion-3-medium-diffusers": (SD3, 2_028_328_000, SD3_VAE, 1024, 4096, 2048),
    "stabilityai/stable-diffusion-3.5-medium": (SD3, 2_243_171_520, SD3_VAE, 1024, 4096, 2048),
    "Efficient-Large-Model/Sana_600M_512px_diffusers": (Sana, 591_747_872, DC_AE, 512, 2304, None),
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": (Sana, 1_604_462_752, DC_AE, 512, 2304, None),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": (Sana, 1_604_462_752, DC_AE, 1024, 2304, None),
}


def test_every_known_model_is_tested() -> None:
    names = {str(file.parent.parent.relative_to(KNOWN)) for file in KNOWN.glob("*/*/vae/config.json")}
    assert names == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_known_model_has_its_published_size(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cls, network, vae, pixels, context, pooled = MODELS[name]
    config = cls.Config(pretrained=name)
    modules = cls.meta_modules(config)
    assert {parameter.device.type for parameter in modules.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in modules.network.parameters()) == network
    assert sum(parameter.numel() for parameter in modules.vae.parameters()) == vae
    spec = modules.spec
    assert spec == cls.infer_spec(config)
    assert (spec.image_size, spec.context_dim, spec.pooled_dim) == (pixels, context, pooled)
    scheduler = json.loads((KNOWN / name / "scheduler" / "scheduler_config.json").read_text())
    assert type(modules.scheduler()).__name__ == scheduler["_class_name"]


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (StableDiffusion, "stabilityai/stable-diffusion-3.5-medium"),
        (SDXL, "Efficient-Large-Model/Sana_600M_512px_diffusers"),
        (SD3, "stabilityai/stable-diffusion-xl-base-1.0"),
        (Sana, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ],
)
def test_a_known_model_of_another_layout_is_refused(cls: Any, name: str) -> None:
    folder, other = cls.layout.network, MODELS[name][0].layout.network
    with pytest.raises(SourceError, match=rf"expected a folder {folder}/ in '{name}', got .*{other}/, vae/"):
        cls.infer_spec(cls.Config(pretrained=name))


@pytest.mark.parametrize(
    ("cls", "name", "other"),
    [
        (StableDiffusion, "stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        (SDXL, "stabilityai/stable-diffusion-2-1", "stable-diffusion"),
    ],
)
def test_the_decoder_of_a_known_model_is_named(cls: Any, name: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"unet/config.json: addition_embed_type: .*decoder '{other}'"):
        cls.infer_spec(cls.Config(pretrained=name))
