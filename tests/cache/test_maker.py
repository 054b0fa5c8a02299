"""A cache is read by what computes the same as its maker, and refused by anything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import caches
import tiny
from caches import CLIP, REGISTRY, changed, model_of, opened, run
from dreamkit.build.fit import fit
from dreamkit.cache.problems import cache_problems
from dreamkit.errors import CacheError, RecipeError
from dreamkit.model.model import DreamModel
from dreamkit_transformers.clip import Clip
from product.parts import parts


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.make(folder, caches.recipe())
    return folder


def shaken_vae(recipe: Any) -> DreamModel:
    model = model_of(recipe)
    with torch.no_grad():
        next(model.image_decoder.vae.parameters()).add_(0.1)
    return model


SD = tiny.RECIPE["model"]["image_decoder"]
NOT_ALIKE = (
    r"computes: %s of a fixed picture: [^ ]+, .* in the cache, [^ ]+, .* now \(.* of it, at most 0.001\)"
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": {"seed": 1}},
            r"features: vision_encoder: weights: \w{16}\.\.\. in the cache, \w{16}\.\.\. now",
        ),
        (
            {"train": {"seed": 1}},
            r"vision_encoder: its weights are random .*, and come from train\.seed, which is 1 now",
        ),
        (
            {"train": {"seed": 1}},
            r"latents: image_decoder: weights: \w{16}\.\.\. in the cache, \w{16}\.\.\. now",
        ),
        ({"model.vision_encoder": {**CLIP, "layer": -1}}, "vision_encoder: layer: -2 in the cache, -1 now"),
        (
            {"model.vision_encoder": {**CLIP, "name": "siglip"}},
            "vision_encoder: name: 'clip' in the cache, 'siglip' now",
        ),
        ({"model.vision_encoder": changed(CLIP, hidden_act="relu")}, NOT_ALIKE % "features"),
        ({"model.vision_encoder": changed(CLIP, layer_norm_eps=1e-2)}, NOT_ALIKE % "features"),
        (
            {"model.vision_encoder": changed(CLIP, image_size=24)},
            r"vision_encoder: features of shape \[4, 16\] in the cache, \[9, 16\] now; make it anew",
        ),
        ({"model.image_decoder": changed(SD, "vae", scaling_factor=0.5)}, NOT_ALIKE % "mean"),
        ({"model.image_decoder": changed(SD, "vae", shift_factor=0.5)}, NOT_ALIKE % "mean"),
        (
            {"model.image_decoder": {**SD, "image_size": 32}},
            r"image_decoder: mean of shape \[4, 8, 8\] in the cache, \[4, 16, 16\] now; make it anew",
        ),
        (
            {"train": {"precision": "bfloat16"}},
            "vision_encoder: precision: float32 in the cache, bfloat16 now",
        ),
        (
            {"train": {"trainable": ["vision_encoder"]}},
            "it holds features, but vision_encoder learns, so that they change; freeze it, or make a cache without",
        ),
        (
            {"model.adapters": [{"target": "vision_encoder", "rank": 2}]},
            "it holds features, but vision_encoder learns, so that they change",
        ),
    ],
)
def test_another_maker_is_an_error(cache: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises((CacheError, RecipeError), match=said) as raised:
        run(tmp_path / "out", caches.recipe(cache, **changes))
    assert "layer" in said or "learns" in said or f"dreamkit cache RECIPE --out {cache}" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_other_preprocessing_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Clip.preprocess
    monkeypatch.setattr(Clip, "preprocess", lambda self, pictures: preprocess(self, pictures).flip(1))
    with pytest.raises(
        CacheError,
        match=r"features: vision_encoder: preprocess: pixels of a fixed picture: .* in the cache, .* now",
    ):
        opened(caches.recipe(cache))


def test_latents_outlive_the_training_of_a_network_and_not_of_the_autoencoder(cache: Path) -> None:
    recipe = caches.recipe(cache, train={"trainable": ["image_decoder", "condition_projector"]})
    model = model_of(recipe)
    with torch.no_grad():
        next(model.image_decoder.unet.parameters()).add_(0.1)
    opened(recipe, model)
    with pytest.raises(CacheError, match="latents: image_decoder: weights: ") as raised:
        opened(recipe, shaken_vae(recipe))
    assert "features" not in str(raised.value)


def other_decoder_half(model: DreamModel) -> None:
    with torch.no_grad():
        for parameter in model.image_decoder.vae.decoder.parameters():
            parameter.add_(0.1)


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({"model.image_decoder": {**SD, "snr_gamma": 5.0}}, None),
        ({"model.image_decoder": changed(SD, "scheduler", beta_end=0.02)}, None),
        ({"model.image_decoder": changed(SD, "unet", cross_attention_dim=20)}, None),
        ({}, other_decoder_half),
    ],
    ids=["loss weight", "scheduler", "network", "decoding half"],
)
def test_what_makes_the_same_latents_may_be_otherwise(
    cache: Path, changes: dict[str, Any], change: Any
) -> None:
    recipe = caches.recipe(cache, **changes)
    model = model_of(recipe)
    model.image_decoder.vae.load_state_dict(model_of(caches.recipe()).image_decoder.vae.state_dict())
    if change is not None:
        change(model)
    assert not cache_problems(fit(recipe, REGISTRY))
    opened(recipe, model)


def test_precision_matters_where_it_makes_a_difference(tmp_path: Path) -> None:
    """SDXL's autoencoder computes in float32 whatever training does."""
    sdxl = parts(REGISTRY)["image_decoder"]["sdxl"]
    for precision in ("float32", "bfloat16"):
        recipe = caches.recipe(
            tmp_path / "sdxl", train={"precision": precision}, **{"model.image_decoder": sdxl}
        )
        if precision == "float32":
            caches.make(tmp_path / "sdxl", recipe, only=["latents"])
        opened(recipe)
    made = caches.make(tmp_path / "bfloat16", caches.recipe(train={"precision": "bfloat16"})).manifest
    assert {table: record["maker"]["precision"] for table, record in made.tables.items()} == {
        "features": "bfloat16",
        "latents": "bfloat16",
    }


class Rounded(Clip):
    """As on another machine: float32 in another order."""

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return super().forward(pixels_NCHW) * (1 + 1e-5)

    def preprocess(self, pictures: Any) -> Tensor:
        return super().preprocess(pictures) + 1e-5

    def get_extra_state(self) -> Any:
        return "no tensor"

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError(state)


def test_rounding_is_no_other_part(cache: Path) -> None:
    recipe = caches.recipe(cache)
    model = model_of(recipe)
    model.vision_encoder.__class__ = Rounded
    opened(recipe, model)
