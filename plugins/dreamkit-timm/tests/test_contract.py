"""The encoder fulfils its contract, for both kinds of model and with each setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from dreamkit.testing import contracts
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig

RESNET = {"architecture": "resnet10t", "layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def form(config: TimmConfig, **settings: Any) -> Callable[[], Timm]:
    """Return a function that builds a part with other settings."""
    return partial(Timm.from_config, replace(config, **settings))


@contracts.parametrize("vision_encoder", contracts.tiny_part(Timm))
def test_vit(check):
    check()


@contracts.parametrize("vision_encoder", form(Timm.tiny_convnet_config()))
def test_convnet(check):
    check()


FORMS = {
    "last layer": form(Timm.tiny_config(), layer=-1),
    "first layer": form(Timm.tiny_config(), layer=0),
    "larger": form(Timm.tiny_config(), image_size=32),
    "pooled": form(Timm.tiny_config(), pool=2),
    "shuffled": form(Timm.tiny_config(), pool=2, pooling="pixel-shuffle"),
    "early stage": form(Timm.tiny_convnet_config(), layer=0, pool=2),
    "batch norms": form(TimmConfig(config=RESNET, image_size=32)),
}


@pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
def test_other_forms(build):
    report = contracts.verify("vision_encoder", build, quick=True)
    assert report.ok, str(report)
