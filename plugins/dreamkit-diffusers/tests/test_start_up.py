"""A spec is inferred without diffusers' networks, which take seconds to import."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamkit_diffusers.networks import Network
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.sdxl import SDXL
from dreamkit_diffusers.stable_diffusion import StableDiffusion
from imports import Part, heavy_imports

DECODERS: tuple[Any, ...] = (StableDiffusion, SDXL, SD3, Sana)
NETWORKS = {network.name: network for cls in DECODERS for network in cls.layout.models.values()}
KNOWN = (
    ("stable-diffusion", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("stable-diffusion", "stabilityai/stable-diffusion-2-1"),
    ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("sd3", "stabilityai/stable-diffusion-3.5-medium"),
    ("sana", "Efficient-Large-Model/Sana_600M_512px_diffusers"),
)


def test_a_spec_imports_no_network(tmp_path: Path) -> None:
    parts: list[Part] = [("image_decoder", name, {"pretrained": source}) for name, source in KNOWN]
    assert heavy_imports(parts, tmp_path) == {}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_defaults_are_read_from_source_without_the_class(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = inspect.signature(network.model_class).parameters
    expected = {name: parameter.default for name, parameter in parameters.items()}
    assert replace(network, file="moved/elsewhere.py").defaults == expected
    monkeypatch.setattr(Network, "model_class", property(lambda _: pytest.fail("the class was imported")))
    assert replace(network).defaults == expected
