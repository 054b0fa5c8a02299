"""The decoders fulfil their contract, for each objective and in the forms of published models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dreamkit.testing import contracts
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from tiny_decoders import tiny_config

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


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


def form(cls: Any, settings: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that builds a tiny decoder with other settings and values."""
    return partial(cls.from_config, tiny_config(cls, settings, **changes))


FORMS = {
    "v": form(StableDiffusion, scheduler={"prediction_type": "v_prediction"}),
    "sample weighted": form(StableDiffusion, {"snr_gamma": 5.0}, scheduler={"prediction_type": "sample"}),
    "epsilon weighted": form(StableDiffusion, {"snr_gamma": 5.0}, scheduler={"prediction_type": "epsilon"}),
    "as published": form(StableDiffusion, {"image_size": 24}, scheduler=PNDM),
    "sdxl v": form(SDXL, scheduler={"prediction_type": "v_prediction"}, vae={"force_upcast": False}),
    "sana patches": form(Sana, scheduler={"shift": 1.0}, transformer={"patch_size": 2}),
    "sana 1.5": form(
        Sana,
        {"image_size": 24},
        scheduler=DPM,
        transformer={"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0},
    ),
    "sd3.5": form(SD3, {"image_size": 32}, transformer={"qk_norm": "rms_norm", "dual_attention_layers": [0]}),
    "sd3 wide latents": form(
        SD3,
        transformer={"in_channels": 16, "out_channels": 16},
        vae={"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    ),
}


@pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
def test_other_forms(build):
    report = contracts.verify("image_decoder", build, quick=True)
    assert report.ok, str(report)
