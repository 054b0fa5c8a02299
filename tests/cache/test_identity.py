"""A cache is read by a model with the same identity as its writer, and refused by every other."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import caches
from caches import CLIP, REGISTRY, SD, build_model, open_with, run, with_config
from dreamkit.build.fit import fit
from dreamkit.cache.manifest import Table
from dreamkit.cache.model_check import open_cache, table_identity, table_module, uncacheable_reason
from dreamkit.cache.recipe_check import cache_problems, identity_differences
from dreamkit.errors import CacheError, RecipeError
from dreamkit.parts.quantized import quantized_layers
from dreamkit.registry.registry import Registry
from dreamkit.storage.packages import package_folder
from product.parts import parts

PARTS: list[tuple[Table, str, str]] = [
    *(
        ("features", "vision_encoder", name)
        for name in ("clip", "siglip", "siglip2", "dinov2", "timm (ViT)", "timm (ConvNet)")
    ),
    *(("latents", "image_decoder", name) for name in ("stable-diffusion (v)", "sdxl", "sd3", "sana")),
]
IS_TRAINED = r"is trained \(train\.trainable or model\.adapters\), so its output changes"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.write(folder, caches.recipe())
    return folder


@contextmanager
def next_value(tensor: torch.Tensor) -> Iterator[None]:
    """Change one element of `tensor` to the nearest other value within the block."""
    flat = tensor.detach().view(-1)
    before = flat[0].clone()
    flat[0] = torch.nextafter(before, torch.tensor(9.0)) if flat.is_floating_point() else before + 1
    yield
    flat[0] = before


@pytest.mark.parametrize(("table", "kind", "name"), PARTS)
def test_the_identity_covers_every_weight_of_the_named_module_and_no_other(
    table: Table, kind: str, name: str
) -> None:
    recipe = caches.recipe(**{f"model.{kind}": parts(REGISTRY)[kind][name]})
    model = build_model(recipe)
    before = table_identity(model, recipe, REGISTRY, table)
    assert json.loads(json.dumps(before)) == before  # as it is read from a manifest
    inside = {id(tensor) for tensor in table_module(model, table).state_dict(keep_vars=True).values()}
    tensors = [t for t in model.parts()[kind].state_dict(keep_vars=True).values() if t.numel()]
    assert len(inside) > 5 and any(id(tensor) not in inside for tensor in tensors) == (table == "latents")
    for tensor in tensors:
        with next_value(tensor):
            lines = [*identity_differences(kind, before, table_identity(model, recipe, REGISTRY, table))]
        assert len(lines) == (id(tensor) in inside)
        assert not lines or lines[0].startswith(
            f"{kind}: weights: sha256 {before['weights']:.16}... in the cache, "
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": {"seed": 1}},
            r"features: vision_encoder: weights: sha256 \w{16}\.\.\. in the cache, \w{16}\.\.\. now",
        ),
        ({"train": {"seed": 1}}, r"vision_encoder: .* random and depend on train\.seed, which is 1 now"),
        ({"train": {"seed": 1}}, r"latents: image_decoder: weights: sha256 \w{16}\.\.\. in the cache, "),
        ({"model.vision_encoder": {**CLIP, "layer": -1}}, "vision_encoder: layer: -2 in the cache, -1 now"),
        (
            {"model.vision_encoder": {**CLIP, "name": "siglip"}},
            r"vision_encoder: component: clip \(dreamkit-transformers .*\) in the cache, siglip \(",
        ),
        (
            {"model.vision_encoder": with_config(CLIP, hidden_act="relu")},
            r"features: vision_encoder: config\.hidden_act: unset in the cache, 'relu' now",
        ),
        (
            {"model.vision_encoder": with_config(CLIP, image_size=24)},
            r"features: vision_encoder: features: shape \[4, 16\] in the cache, \[9, 16\] now",
        ),
        (
            {"model.image_decoder": with_config(SD, "vae", scaling_factor=0.5)},
            r"latents: image_decoder: config\.vae\.scaling_factor: unset in the cache, 0\.5 now",
        ),
        (
            {"model.image_decoder": {**SD, "image_size": 32}},
            "latents: image_decoder: image_size: null in the cache, 32 now",
        ),
        (
            {"model.image_decoder": {**SD, "image_size": 32}},
            r"latents: image_decoder: mean: shape \[4, 8, 8\] in the cache, \[4, 16, 16\] now",
        ),
        (
            {"train": {"precision": "bfloat16"}},
            "features: vision_encoder: precision: float32 in the cache, bfloat16 now",
        ),
    ],
)
def test_a_cache_of_another_model_is_refused_with_both_values_and_the_command(
    cache: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    recipe = caches.recipe(cache, **changes)
    with pytest.raises((CacheError, RecipeError), match=message) as refusal:
        run(tmp_path / "out", recipe)
    assert (
        f"recreate it from a recipe with all of its data: dreamkit cache RECIPE --out {cache} --overwrite"
        in str(refusal.value)
    )
    assert not (tmp_path / "out").exists()
    # weights are compared with the model alone, everything else with the recipe as well
    assert bool(cache_problems(fit(recipe, REGISTRY))) == ("seed" not in changes.get("train", {}))
    with pytest.raises(CacheError, match="does not fit this training; recreate it"):
        open_with(recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"trainable": ["vision_encoder"]}},
        {"model.adapters": [{"target": "vision_encoder", "rank": 2}]},
    ],
    ids=["trained", "adapted"],
)
def test_features_of_an_encoder_that_is_trained_or_adapted_are_refused(
    cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = caches.recipe(cache, **changes)
    for start in (lambda: run(tmp_path / "out", recipe), lambda: open_with(recipe)):
        with pytest.raises(
            (CacheError, RecipeError), match=f"features: vision_encoder {IS_TRAINED}"
        ) as refusal:
            start()
        assert (
            "freeze it, or create a cache without features: dreamkit cache RECIPE --out FOLDER --only latents"
            in str(refusal.value)
        )
        assert "recreate" not in str(refusal.value)


@pytest.mark.parametrize("module", ["", "unet"])
def test_latents_of_a_trained_decoder_are_refused_if_the_named_module_is_trained(
    cache: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """Without weights, only a decoder that names itself as a whole is certain to be trained."""
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior_module", module)
    recipe = caches.recipe(cache, train={"trainable": ["image_decoder"]})
    hint = "freeze it, or create a cache without latents: dreamkit cache RECIPE --out FOLDER --only features"
    problems = cache_problems(fit(recipe, REGISTRY))
    assert [hint in problem.message for problem in problems] == ([True] if module == "" else [])
    with pytest.raises(CacheError, match=f"latents: image_decoder {IS_TRAINED}") as refusal:
        open_with(recipe)
    assert hint in str(refusal.value) and "recreate" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"trainable": ["image_decoder", "condition_projector"]}},
        {"model.adapters": [{"target": "image_decoder", "rank": 2}]},
    ],
    ids=["trained", "adapted"],
)
def test_latents_fit_a_trained_network_and_not_another_autoencoder(
    cache: Path, changes: dict[str, Any]
) -> None:
    recipe = caches.recipe(cache, **changes)
    model = build_model(recipe)
    with torch.no_grad():
        next(model.image_decoder.unet.parameters()).add_(0.1)
    assert uncacheable_reason(model, "latents") is None
    open_with(recipe, model)
    nn.init.zeros_(next(model.image_decoder.vae.parameters()))
    with pytest.raises(CacheError, match="latents: image_decoder: weights: ") as refusal:
        open_with(recipe, model)
    assert "features" not in str(refusal.value)


def test_a_setting_of_the_loss_alone_does_not_refuse_a_cache(cache: Path) -> None:
    recipe = caches.recipe(cache, **{"model.image_decoder": {**SD, "snr_gamma": 5.0}})
    assert not cache_problems(fit(recipe, REGISTRY))
    open_with(recipe)


def test_another_version_of_a_plug_in_is_refused(cache: Path) -> None:
    components = [
        *REGISTRY.components("vision_encoder").values(),
        *REGISTRY.components("image_decoder").values(),
    ]
    newer = Registry(
        [replace(c, version="9.9") if c.distribution == "dreamkit-diffusers" else c for c in components]
    )
    recipe = caches.recipe(cache)
    with pytest.raises(
        CacheError,
        match=r"image_decoder: component: stable-diffusion \(dreamkit-diffusers .*\) in the cache, .* 9\.9\) now",
    ) as refusal:
        open_cache(recipe, build_model(recipe), newer)
    assert "vision_encoder" not in str(refusal.value)


def test_a_source_may_move_and_gain_files_but_not_change_its_config(tmp_path: Path) -> None:
    source = tmp_path / "siglip"
    shutil.copytree(package_folder("dreamkit_digits", "parts/siglip"), source)

    def recipe_from(source: Path) -> Any:
        section = {"name": "siglip", "pretrained": str(source)}
        return caches.recipe(tmp_path / "cache", **{"model.vision_encoder": section})

    report = caches.write(tmp_path / "cache", recipe_from(source), only=["features"])
    identity = report.manifest.tables["features"]["identity"]
    assert identity["source_files"].keys() == {"config.json", "preprocessor_config.json"}
    assert "pretrained" not in identity["settings"]
    moved = source.rename(tmp_path / "moved")
    (moved / "tokenizer_config.json").write_text("{}")
    open_with(recipe_from(moved))
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    with pytest.raises(
        CacheError, match=r"vision_encoder: config\.json: sha256 \w{16}\.\.\. in the cache, \w{16}\.\.\. now"
    ) as refusal:
        open_with(recipe_from(moved))
    assert "weights" not in str(refusal.value)


def test_a_cache_of_a_quantized_encoder_is_another_one() -> None:
    quantized = {f"model.{part}.quantize": "int8" for part in ("vision_encoder", "image_decoder")}
    plain, packed = caches.recipe(), caches.recipe(**quantized)
    assert cache_problems(fit(packed, REGISTRY)) == []
    identities = {
        name: table_identity(build_model(recipe), recipe, REGISTRY, table)
        for name, recipe, table in (
            ("plain", plain, "features"),
            ("packed", packed, "features"),
            ("plain latents", plain, "latents"),
            ("packed latents", packed, "latents"),
        )
    }
    lines = [*identity_differences("vision_encoder", identities["plain"], identities["packed"])]
    assert lines[0] == "vision_encoder: quantize: unset in the cache, 'int8' now"
    assert "weights: sha256" in lines[1]
    # the autoencoder is never quantized
    assert identities["plain latents"] == identities["packed latents"]
    model = build_model(packed)
    before = table_identity(model, packed, REGISTRY, "features")
    for tensor in next(quantized_layers(model.vision_encoder))[1].buffers():
        with next_value(tensor):
            assert table_identity(model, packed, REGISTRY, "features")["weights"] != before["weights"]
