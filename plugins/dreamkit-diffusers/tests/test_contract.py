"""The decoder keeps its contract, for each of the objectives it may have been trained for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dreamkit.testing import contracts
from dreamkit_diffusers.stable_diffusion import StableDiffusion

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def form(schedule: dict[str, Any], **settings: Any) -> Any:
    """What builds the miniature with another noise schedule and other settings."""

    def build() -> StableDiffusion:
        given = StableDiffusion.miniature()
        assert given.config is not None
        config = {**given.config, "scheduler": {**given.config["scheduler"], **schedule}}
        return StableDiffusion.from_config(replace(given, config=config, **settings))

    return build


@contracts.parametrize("image_decoder", contracts.miniature(StableDiffusion))
def test_stable_diffusion(check):
    check()


@pytest.mark.parametrize(
    "build",
    [
        form({"prediction_type": "v_prediction"}),
        form({"prediction_type": "sample"}, snr_gamma=5.0),
        form({"prediction_type": "epsilon"}, snr_gamma=5.0),
        form(
            {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}, image_size=24
        ),
    ],
    ids=["v", "sample weighted", "epsilon weighted", "as published"],
)
def test_other_forms(build):
    report = contracts.verify("image_decoder", build, quick=True)
    assert report.ok, str(report)
