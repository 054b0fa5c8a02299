"""The decoders keep their contract, each for the objectives and in the forms it may have been trained in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dreamkit.testing import contracts
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DPM = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def form(cls: Any, changes: dict[str, dict[str, Any]], **settings: Any) -> Any:
    """What builds a miniature with values of its parts changed, and other settings."""

    def build() -> Any:
        given = cls.tiny_config()
        config = {name: {**part, **changes.get(name, {})} for name, part in given.config.items()}
        return cls.from_config(replace(given, config=config, **settings))

    return build


@contracts.parametrize("image_decoder", contracts.tiny_part(StableDiffusion))
def test_stable_diffusion(check):
    check()


@contracts.parametrize("image_decoder", contracts.tiny_part(SDXL))
def test_sdxl(check):
    check()


@contracts.parametrize("image_decoder", contracts.tiny_part(Sana))
def test_sana(check):
    check()


@contracts.parametrize("image_decoder", contracts.tiny_part(SD3))
def test_sd3(check):
    check()


@pytest.mark.parametrize(
    "build",
    [
        form(StableDiffusion, {"scheduler": {"prediction_type": "v_prediction"}}),
        form(StableDiffusion, {"scheduler": {"prediction_type": "sample"}}, snr_gamma=5.0),
        form(StableDiffusion, {"scheduler": {"prediction_type": "epsilon"}}, snr_gamma=5.0),
        form(
            StableDiffusion,
            {
                "scheduler": {
                    "_class_name": "PNDMScheduler",
                    "skip_prk_steps": True,
                    "set_alpha_to_one": False,
                }
            },
            image_size=24,
        ),
        form(SDXL, {"scheduler": {"prediction_type": "v_prediction"}, "vae": {"force_upcast": False}}),
        form(Sana, {"scheduler": {"shift": 1.0}, "transformer": {"patch_size": 2}}),
        form(
            Sana,
            {
                "scheduler": {**DPM, **FLOW, "flow_shift": 3.0},
                "transformer": {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0},
            },
            image_size=24,
        ),
        form(SD3, {"transformer": {"qk_norm": "rms_norm", "dual_attention_layers": [0]}}, image_size=32),
        form(
            SD3,
            {
                "transformer": {"in_channels": 16, "out_channels": 16},
                "vae": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
            },
        ),
    ],
    ids=[
        "v",
        "sample weighted",
        "epsilon weighted",
        "as published",
        "sdxl v",
        "sana patches",
        "sana 1.5",
        "sd3.5",
        "sd3 wide latents",
    ],
)
def test_other_forms(build):
    report = contracts.verify("image_decoder", build, quick=True)
    assert report.ok, str(report)
