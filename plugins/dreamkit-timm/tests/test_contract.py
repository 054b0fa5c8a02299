"""The parts of this distribution keep their contracts, as they come and in forms that recipes give them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dreamkit.testing import contracts
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig


def convnet() -> Timm:
    return Timm.from_config(Timm.tiny_convnet_config())


def form(**changes: Any) -> Any:
    """What builds the miniature with other settings."""
    return lambda: Timm.from_config(replace(Timm.tiny_config(), **changes))


def other(architecture: str, *, image_size: int = 32, **arguments: Any) -> Any:
    """What builds a small model of another architecture."""
    config = {"architecture": architecture, **arguments}
    return lambda: Timm.from_config(TimmConfig(config=config, image_size=image_size))


@contracts.parametrize("vision_encoder", contracts.tiny_part(Timm))
def test_vit(check):
    check()


@contracts.parametrize("vision_encoder", convnet)
def test_convnet(check):
    check()


FORMS = {
    "last layer": form(layer=-1),
    "first layer": form(layer=0),
    "larger": form(image_size=32),
    "pooled": form(pool=2),
    "shuffled": form(pool=2, pooling="pixel-shuffle"),
    "early stage": lambda: Timm.from_config(replace(Timm.tiny_convnet_config(), layer=0, pool=2)),
    "batch norms": other("resnet10t", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]),
}


@pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
def test_other_forms(build):
    report = contracts.verify("vision_encoder", build, quick=True)
    assert report.ok, str(report)
