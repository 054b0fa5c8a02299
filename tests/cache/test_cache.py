"""Training from a cache is training without it, and runs no part that the cache replaces."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import caches
import layouts
import tiny
from caches import CLIP, REGISTRY, build_model, open_with, run, with_config
from dreamkit.data.sequence import blank_picture
from dreamkit.document import Document, Image, Text
from dreamkit.errors import CacheError, RecipeError
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.plan.plan import plan
from dreamkit.training.run import TrainResult
from dreamkit_diffusers.latent import LatentDecoder
from dreamkit_transformers.clip import Clip
from product.parts import parts

BUILDING = 1  # call of an encoder on the meta device, to find its shapes
TEXT_ONLY = [Document((Text("no image at all"),), name="b")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.write(folder, caches.recipe())
    return folder


def losses(result: TrainResult) -> Tensor:
    """Return the logged losses; 0 for a loss that a step does not have."""
    values = [[entry[name] or 0.0 for name in ("loss", "lm", "denoising")] for entry in result.log]
    return torch.tensor(values, dtype=torch.float64)


def assert_close(actual: Tensor | None, expected: Tensor | None) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class Calls:
    """The number of calls of methods, from now on, by their names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]) -> None:
        self.counts = {name: 0 for _, name in methods}
        for cls, name in methods:
            monkeypatch.setattr(cls, name, self._counting(getattr(cls, name), name))

    def _counting(self, method: Any, name: str) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            self.counts[name] += 1
            return method(*args, **named)

        return counted


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_training_from_a_cache_has_the_same_losses_and_runs_no_frozen_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    workers: int,
) -> None:
    settings = {"precision": precision, "workers": workers}
    caches.write(tmp_path / "cache", caches.recipe(train=settings))
    calls = Calls(monkeypatch, (Clip, "forward"), (LatentDecoder, "posterior"))
    without = run(tmp_path / "without", caches.recipe(train=settings))
    assert calls.counts == {"forward": BUILDING + 4, "posterior": 4}
    calls = Calls(monkeypatch, (Clip, "forward"), (LatentDecoder, "posterior"))
    cached = run(tmp_path / "cached", caches.recipe(tmp_path / "cache", train=settings))
    assert calls.counts == {"forward": BUILDING, "posterior": 0}
    tolerance = {"bfloat16": 1e-2, "float32": 1e-4, "float64": 1e-12}[precision]
    torch.testing.assert_close(losses(cached), losses(without), rtol=tolerance, atol=0)
    err = capsys.readouterr().err
    assert f"read from {tmp_path / 'cache'}: features (images: 6, vision_encoder does not run), " in err
    assert "latents (images: 3, image_decoder does not encode)" in err


def test_rows_are_the_outputs_of_the_parts(cache: Path) -> None:
    """Latents equal those of diffusers. The dummy's images are in the cache too."""
    recipe = caches.recipe(cache)
    model = build_model(recipe)
    tables = open_with(recipe, model)
    for documents in (tiny.documents(), TEXT_ONLY):
        cached, plain = caches.batch(model, tables, documents), caches.batch(model, None, documents)
        assert (
            cached.pixels_NCHW is None and cached.targets_MCHW is None and cached.extras == plain.extras == {}
        )
        assert plain.targets_MCHW is not None
        with torch.no_grad():
            assert_close(cached.features_NVd, model.vision_encoder(plain.pixels_NCHW))
            posterior = model.image_decoder.vae.encode(plain.targets_MCHW).latent_dist
        scale = model.image_decoder.vae.config.scaling_factor
        assert_close(cached.latent_mean_Mchw, scale * posterior.mean)
        assert_close(cached.latent_std_Mchw, scale * posterior.std)
        for name in ("input_ids_BT", "vision_rows_NV", "dream_rows_MQ", "counts"):
            assert torch.equal(getattr(cached, name), getattr(plain, name))


def test_each_step_samples_other_latents_from_the_posterior(cache: Path) -> None:
    recipe = caches.recipe(cache)
    model = build_model(recipe)
    batch = caches.batch(model, open_with(recipe, model))
    mean, std = batch.latent_mean_Mchw, batch.latent_std_Mchw
    assert mean is not None and std is not None
    torch.manual_seed(0)
    samples = torch.stack([model.latents(batch) for _ in range(2000)])
    error = (samples.mean(0) - mean) / std * 2000**0.5  # unit normal
    assert error.abs().mean() < 1 and error.square().mean().sub(1).abs() < 0.2
    torch.testing.assert_close(samples.std(0) / std, torch.ones_like(std), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("clip", "sdxl"),
        ("siglip", "sana"),
        ("siglip2", "sd3"),
        ("dinov2", "stable-diffusion (v)"),
        ("timm (ViT)", "sdxl"),
        ("timm (ConvNet)", "sana"),
    ],
)
def test_every_part_can_be_cached(tmp_path: Path, encoder: str, decoder: str) -> None:
    """Losses are the same with the same noise, for images of several shapes; extras are those of preprocessing."""
    every = parts(REGISTRY)
    sections = {"model.vision_encoder": every["vision_encoder"][encoder]}
    sections["model.image_decoder"] = every["image_decoder"][decoder]
    recipe = caches.recipe(tmp_path, **sections)
    shapes = [(24, 16), (9, 40), (16, 16)]
    pictures = [tiny.picture(seed, 40).crop((0, 0, *shape)) for seed, shape in enumerate(shapes)]
    documents = [Document((Text("a"), Image(picture, draw=True)), name="a") for picture in pictures]
    model = build_model(recipe)
    caches.write(tmp_path, recipe, documents, model=model)
    tables = open_with(recipe, model)
    moments = tables.moments([("a", pictures[0])])
    assert moments is not None and (moments.std is None) == (decoder == "sana")
    model.eval()
    cached, plain = (caches.batch(model, computed, documents) for computed in (tables, None))
    assert cached.extras.keys() == plain.extras.keys() == ({"time_ids"} if decoder == "sdxl" else set())
    for name, extra in cached.extras.items():
        assert torch.equal(extra, plain.extras[name])
    results = []
    for batch in (cached, plain):
        torch.manual_seed(0)  # of latents, noise and timesteps
        results.append(model(batch))
    torch.testing.assert_close(results[0].lm, results[1].lm, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0].denoising, results[1].denoising, rtol=1e-4, atol=1e-5)


def test_files_have_a_size_limit_and_each_image_is_computed_once(tmp_path: Path) -> None:
    recipe = caches.recipe(tmp_path / "small")
    twice = tiny.documents() * 2
    manifest = caches.write(tmp_path / "small", recipe, twice, shard_bytes=1000).manifest
    assert [manifest.tables[table]["images"] for table in ("features", "latents")] == [6, 3]
    files = [name for name in manifest.files if name.startswith("features-")]
    assert len(files) == manifest.tables["features"]["shards"] == 3  # of 4 x 16 float32 each
    small = caches.batch(build_model(recipe), open_with(recipe))
    recipe = replace(recipe, train=replace(recipe.train, cache=str(tmp_path / "large"), workers=2))
    caches.write(tmp_path / "large", recipe, twice)
    large = caches.batch(build_model(recipe), open_with(recipe))
    assert_close(large.features_NVd, small.features_NVd)
    assert_close(large.latent_mean_Mchw, small.latent_mean_Mchw)


def test_only_the_modules_of_tables_are_moved_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[type] = []
    model = build_model(caches.recipe())
    apply = nn.Module._apply

    def record(self: nn.Module, *args: Any, **named: Any) -> Any:
        moved.append(type(self))
        return apply(self, *args, **named)

    monkeypatch.setattr(nn.Module, "_apply", record)
    caches.write(tmp_path / "cache", caches.recipe(), model=model)
    modules = (model.vision_encoder, model.image_decoder.vae)
    inside = {type(module) for part in modules for module in part.modules()}
    assert {type(module) for module in modules} <= {*moved} <= inside


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_about_a_missing_image_names_its_document(
    cache: Path, tmp_path: Path, workers: int
) -> None:
    new = [Document((Text("a"), Image(tiny.picture(77, 24), draw=True)), name="a new one")]
    with pytest.raises(CacheError) as error:
        run(
            tmp_path / "out",
            caches.recipe(cache, train={"workers": workers}),
            datasets=[layouts.TinyDocuments(new)],
        )
    message = (
        f"a new one: the cache {cache} has no features of one of its images (24 x 24, RGB): data was added"
    )
    assert message in str(error.value) and f"dreamkit cache RECIPE --out {cache}" in str(error.value)


def test_a_table_of_a_trained_part_is_left_out_with_the_reason(tmp_path: Path) -> None:
    recipe = caches.recipe(train={"trainable": ["vision_encoder"]})
    report = caches.write(tmp_path / "cache", recipe)
    assert [*report.manifest.tables] == ["latents"] and report.left_out.keys() == {"features"}
    reason = r"vision_encoder is trained \(train\.trainable or model\.adapters\), so its output changes"
    with pytest.raises(CacheError, match=rf"nothing can be cached:\n  features: {reason}$") as error:
        caches.write(tmp_path / "none", recipe, only=["features"])
    assert report.left_out["features"] in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_training_computes_a_table_that_was_not_requested(tmp_path: Path) -> None:
    report = caches.write(tmp_path / "cache", caches.recipe(), only=["features"])
    assert [*report.manifest.tables] == ["features"] and not report.left_out
    recipe = caches.recipe(tmp_path / "cache")
    batch = caches.batch(build_model(recipe), open_with(recipe))
    assert batch.pixels_NCHW is None and batch.targets_MCHW is not None and batch.latent_mean_Mchw is None


def test_an_unknown_table_is_refused_before_a_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("dreamkit.cache.cached_parts.build_as_stored")
    with pytest.raises(CacheError, match="unknown table 'pixels'; known: features, latents"):
        caches.write(tmp_path / "none", caches.recipe(), only=["pixels"])
    assert not [*tmp_path.iterdir()]


def test_a_decoder_that_names_no_module_has_no_latents_to_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior_module", None)
    with pytest.raises(
        CacheError, match=r"StableDiffusion has `posterior`, but its posterior_module is None.*test-plugin"
    ):
        caches.write(tmp_path / "none", caches.recipe(), only=["latents"])
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior", ImageDecoder.posterior)
    with pytest.raises(CacheError, match="StableDiffusion has no `posterior` to compute them with"):
        caches.write(tmp_path / "none", caches.recipe(), only=["latents"])
    assert not [*tmp_path.iterdir()]


def broken_posterior(self: Any, targets_NCHW: Tensor) -> Any:
    return self.vea.encode(targets_NCHW)


def broken_preprocess(self: Any, pictures: Any) -> Any:
    return pictures.pixels


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("posterior_module", "vea", r"posterior_module is 'vea': AttributeError: .*vea"),
        ("preprocess", broken_preprocess, "preprocess: AttributeError: .*pixels"),
        ("posterior", broken_posterior, "posterior: AttributeError: .*vea"),
        (
            "posterior",
            ImageDecoder.posterior,
            "posterior: NotImplementedError: .* has neither `posterior` nor",
        ),
    ],
)
def test_an_error_in_the_code_of_a_plug_in_names_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, message: str
) -> None:
    monkeypatch.setattr(f"dreamkit_diffusers.latent.LatentDecoder.{name}", value)
    start = r"cannot compute latents: image_decoder \(StableDiffusion\): "
    with pytest.raises(CacheError, match=start + message) as error:
        caches.write(tmp_path / "new", caches.recipe())
    assert "fix its plug-in; `dreamkit test-plugin DISTRIBUTION`" in str(error.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("draw", "table"), [(True, "latents"), (False, "features")])
def test_a_table_without_images_in_the_data_is_left_out(tmp_path: Path, draw: bool, table: str) -> None:
    """The other table also has the blank image, which completes batches, and does not count it."""
    pictures = [tiny.picture(0), blank_picture()]
    documents = [
        Document((Text("a"), Image(picture, draw=draw, read=not draw)), name="a") for picture in pictures
    ]
    manifest = caches.write(tmp_path / "cache", caches.recipe(), documents, shard_bytes=1).manifest
    assert {name: record["images"] for name, record in manifest.tables.items()} == {table: 1}
    assert all(name.startswith(table) for name in manifest.files)
    recipe = caches.recipe(tmp_path / "cache")
    tables = open_with(recipe)
    assert [len(shards) for shards in tables.shards.values()] == [2]
    for batch in (documents, TEXT_ONLY):
        caches.batch(build_model(recipe), tables, batch)


def test_data_without_images_is_refused(tmp_path: Path) -> None:
    message = "features: the data has no image to read\n  latents: the data has no image to draw"
    with pytest.raises(CacheError, match=message):
        caches.write(tmp_path / "none", caches.recipe(), TEXT_ONLY)
    assert not [*tmp_path.iterdir()]


def test_a_resumed_run_may_add_a_cache(cache: Path, tmp_path: Path) -> None:
    settings = {"save_every": 2}
    straight = run(tmp_path / "straight", caches.recipe(train=settings))
    shutil.copytree(tmp_path / "straight/checkpoints/step-2", tmp_path / "resumed/checkpoints/step-2")
    resumed = run(tmp_path / "resumed", caches.recipe(cache, train=settings), resume=True)
    assert [entry["step"] for entry in resumed.log] == [3, 4]
    assert resumed.log[-1]["loss"] == pytest.approx(straight.log[-1]["loss"], rel=1e-4)


def test_a_plan_with_a_cache_leaves_out_the_work_it_saves(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = plan(caches.recipe(), REGISTRY)
    calls = Calls(monkeypatch, (Clip, "forward"), (LatentDecoder, "posterior"))
    cached = plan(caches.recipe(cache), REGISTRY)
    assert calls.counts == {"forward": BUILDING, "posterior": 0}
    assert cached.flops < without.flops
    other = {"model.vision_encoder": with_config(CLIP, image_size=24)}
    with pytest.raises(RecipeError, match=r"train\.cache: .* does not fit this training; recreate it"):
        plan(caches.recipe(cache, **other), REGISTRY)
