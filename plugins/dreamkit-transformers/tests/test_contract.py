"""The vision encoders of this distribution keep their contracts, as they come and in forms that recipes give them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dreamkit.testing import contracts
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from forms import form


def fixed_siglip2() -> Siglip2:
    given = Siglip.tiny_config()
    return Siglip2.from_config(replace(given, config={**given.config, "model_type": "siglip_vision_model"}))


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
    ("kind", "build"),
    [
        ("vision_encoder", form(Clip, layer=-1)),
        ("vision_encoder", form(Siglip, layer=1)),
        ("vision_encoder", form(Siglip, layer=-1, config={"image_size": 18, "patch_size": 4})),
        ("vision_encoder", fixed_siglip2),
        ("vision_encoder", form(Siglip2, image_size=32, pool=2)),
        ("vision_encoder", form(Dinov2, config={"model_type": "dinov2_with_registers"})),
        ("vision_encoder", form(Dinov2, image_size=24, layer=1)),
        ("vision_encoder", form(Dinov2, pool=2, pooling="pixel-shuffle")),
        ("vision_encoder", form(Clip, image_size=32, pool=2)),
    ],
    ids=[
        "last layer",
        "first layer",
        "cut patches",
        "fixed",
        "large naflex",
        "registers",
        "large dinov2",
        "shuffled",
        "pooled",
    ],
)
def test_other_forms(kind, build):
    report = contracts.verify(kind, build, quick=True)
    assert report.ok, str(report)
