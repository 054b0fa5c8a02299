"""The contract checks of the vision encoders, with their tiny configs and with other settings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dreamkit.testing import contracts
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from forms import form


def fixed_siglip2() -> Siglip2:
    tiny = Siglip.tiny_config()
    return Siglip2.from_config(replace(tiny, config={**tiny.config, "model_type": "siglip_vision_model"}))


@contracts.parametrize("vision_encoder", contracts.tiny_part(Clip))
def test_clip(check):
    check()


@contracts.parametrize("vision_encoder", contracts.tiny_part(Siglip))
def test_siglip(check):
    check()


@contracts.parametrize("vision_encoder", contracts.tiny_part(Siglip2))
def test_siglip2(check):
    check()


@contracts.parametrize("vision_encoder", contracts.tiny_part(Dinov2))
def test_dinov2(check):
    check()


@pytest.mark.parametrize(
    "build",
    [
        form(Clip, layer=-1),
        form(Siglip, layer=1, image_size=32),
        form(Siglip, layer=-1, config={"image_size": 18, "patch_size": 4}),
        fixed_siglip2,
        form(Siglip2, image_size=32, pool=2),
        form(Dinov2, config={"model_type": "dinov2_with_registers"}),
        form(Dinov2, image_size=24, layer=1),
        form(Dinov2, pool=2, pooling="pixel-shuffle"),
        form(Clip, image_size=32, pool=2),
    ],
    ids=[
        "last layer",
        "large siglip",
        "cut patches",
        "fixed resolution",
        "large naflex",
        "registers",
        "large dinov2",
        "shuffled",
        "pooled",
    ],
)
def test_other_settings_keep_the_contract(build):
    report = contracts.verify("vision_encoder", build, quick=True)
    assert report.ok, str(report)
