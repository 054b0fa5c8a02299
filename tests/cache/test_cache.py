"""A training run from a cache is the run without it, and a cache that would make another one is refused."""

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
from caches import CLIP, REGISTRY, changed, model_of, opened, run
from dreamkit.build.fit import fit
from dreamkit.cache.problems import cache_problems
from dreamkit.document import Document, Image, Text
from dreamkit.errors import CacheError, RecipeError
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.plan.plan import plan
from dreamkit.training.run import TrainResult
from dreamkit_transformers.clip import Clip
from product.parts import parts

BUILDING = 1  # call of a tower on the meta device, to learn its shapes
PROBES = {"float32": 1, "bfloat16": 2}  # calls to compare it with a cache: exactly, and as in training


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.make(folder, caches.recipe())
    return folder


def losses(result: TrainResult) -> Tensor:
    """Those that were logged; 0 where a step had none."""
    return torch.tensor(
        [[entry[name] or 0.0 for name in ("loss", "lm", "denoising")] for entry in result.log]
    )


class Counted:
    """How often methods are called, from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]) -> None:
        self.calls = {name: 0 for _, name in methods}
        for cls, name in methods:
            monkeypatch.setattr(cls, name, self._counting(getattr(cls, name), name))

    def _counting(self, method: Any, name: str) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return method(*args, **named)

        return counted


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_from_a_cache_is_training_without_and_runs_no_frozen_part(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    workers: int,
) -> None:
    settings = {"precision": precision, "workers": workers}
    caches.make(tmp_path / "cache", caches.recipe(train=settings))
    counted = Counted(monkeypatch, (Clip, "forward"), (ImageDecoder, "encode"))
    without = run(tmp_path / "without", caches.recipe(train=settings))
    assert counted.calls == {"forward": BUILDING + 4, "encode": 4}
    counted = Counted(monkeypatch, (Clip, "forward"), (ImageDecoder, "encode"))
    with_it = run(tmp_path / "with", caches.recipe(tmp_path / "cache", train=settings))
    assert counted.calls == {"forward": BUILDING + PROBES[precision], "encode": 0}
    tolerance = 1e-4 if precision == "float32" else 1e-2
    torch.testing.assert_close(losses(with_it), losses(without), rtol=tolerance, atol=0)
    said = capsys.readouterr().err
    assert f"read from {tmp_path / 'cache'}: features (pictures: 6, vision_encoder does not run), " in said
    assert "latents (pictures: 3, image_decoder does not encode)" in said


def test_rows_are_what_the_parts_make(cache: Path) -> None:
    """Of the latents as diffusers has them; the dummy's pictures are there too."""
    recipe = caches.recipe(cache)
    model = model_of(recipe)
    computed = opened(recipe, model)
    text = [Document((Text("no picture at all"),))]
    for documents in (tiny.documents(), text):
        found, plain = caches.batch(model, computed, documents), caches.batch(model, None, documents)
        assert found.pixels_NCHW is None and found.targets_MCHW is None and found.extras == plain.extras == {}
        assert plain.targets_MCHW is not None and found.latent_std_Mchw is not None
        with torch.no_grad():
            close(found.features_NVd, model.vision_encoder(plain.pixels_NCHW))
            posterior = model.image_decoder.vae.encode(plain.targets_MCHW).latent_dist
        scale = model.image_decoder.vae.config.scaling_factor
        close(found.latent_mean_Mchw, scale * posterior.mean)
        close(found.latent_std_Mchw, scale * posterior.std)
        for other in ("input_ids_BT", "vision_rows_NV", "dream_rows_MQ", "counts"):
            assert torch.equal(getattr(found, other), getattr(plain, other))


def close(found: Tensor | None, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_each_step_draws_other_latents_from_the_posterior(cache: Path) -> None:
    recipe = caches.recipe(cache)
    model = model_of(recipe)
    batch = caches.batch(model, opened(recipe, model))
    mean, std = batch.latent_mean_Mchw, batch.latent_std_Mchw
    assert mean is not None and std is not None
    torch.manual_seed(0)
    drawn = torch.stack([model.latents(batch) for _ in range(2000)])
    off = (drawn.mean(0) - mean) / std * 2000**0.5  # unit normal
    assert off.abs().mean() < 1 and off.square().mean().sub(1).abs() < 0.2
    torch.testing.assert_close(drawn.std(0) / std, torch.ones_like(std), rtol=0, atol=0.1)


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
    """Losses with the same noise, of pictures of several shapes; and the extras are those of preprocessing."""
    every = parts(REGISTRY)
    sections = {"model.vision_encoder": every["vision_encoder"][encoder]}
    sections["model.image_decoder"] = every["image_decoder"][decoder]
    recipe = caches.recipe(tmp_path, **sections)
    shapes = [(24, 16), (9, 40), (16, 16)]
    pictures = [tiny.picture(seed, 40).crop((0, 0, *shape)) for seed, shape in enumerate(shapes)]
    documents = [Document((Text("a"), Image(picture, draw=True)), name="a") for picture in pictures]
    model = model_of(recipe)
    caches.make(tmp_path, recipe, documents, model=model)
    computed = opened(recipe, model)
    assert (computed.moments([("a", pictures[0])]).std is None) == (decoder == "sana")  # type: ignore[union-attr]
    model.eval()
    batches = [caches.batch(model, given, documents) for given in (computed, None)]
    assert (
        batches[0].extras.keys() == batches[1].extras.keys() == ({"time_ids"} if decoder == "sdxl" else set())
    )
    for name, extra in batches[0].extras.items():
        assert torch.equal(extra, batches[1].extras[name])
    found = []
    for batch in batches:
        torch.manual_seed(0)  # of latents, noise and timesteps
        found.append(model(batch))
    torch.testing.assert_close(found[0].lm, found[1].lm, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0].denoising, found[1].denoising, rtol=1e-4, atol=1e-5)


def test_files_have_a_size_at_most_and_each_picture_is_computed_once(tmp_path: Path) -> None:
    recipe = caches.recipe(tmp_path / "small")
    twice = tiny.documents() * 2
    made = caches.make(tmp_path / "small", recipe, twice, shard_bytes=1000).manifest
    assert [made.tables[table]["pictures"] for table in ("features", "latents")] == [6, 3]
    features = [name for name in made.files if name.startswith("features-")]
    assert len(features) == made.tables["features"]["shards"] == 3  # of 4 x 16 float32 each
    rows = caches.batch(model_of(recipe), opened(recipe))
    large = replace(recipe, train=replace(recipe.train, cache=str(tmp_path / "large"), workers=2))
    caches.make(tmp_path / "large", large, twice)
    same = caches.batch(model_of(large), opened(large))
    close(same.features_NVd, rows.features_NVd)  # type: ignore[arg-type]
    close(same.latent_mean_Mchw, rows.latent_mean_Mchw)  # type: ignore[arg-type]


def test_only_what_makes_tables_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[type] = []
    model = model_of(caches.recipe())
    apply = nn.Module._apply

    def listen(self: nn.Module, *args: Any, **named: Any) -> Any:
        moved.append(type(self))
        return apply(self, *args, **named)

    monkeypatch.setattr(nn.Module, "_apply", listen)
    caches.make(tmp_path / "cache", caches.recipe(), model=model)
    inside = {
        type(module) for part in (model.vision_encoder, model.image_decoder.vae) for module in part.modules()
    }
    assert {type(model.vision_encoder), type(model.image_decoder.vae)} <= {*moved} <= inside


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_missing_is_an_error_that_names_its_document(
    cache: Path, tmp_path: Path, workers: int
) -> None:
    new = [Document((Text("a"), Image(tiny.picture(77, 24), draw=True)), name="a new one")]
    with pytest.raises(CacheError) as raised:
        run(
            tmp_path / "out",
            caches.recipe(cache, train={"workers": workers}),
            datasets=[layouts.TinyDocuments(new)],
        )
    said = (
        f"a new one: the cache {cache} has no features of one of its pictures (24 x 24, RGB): data was added"
    )
    assert said in str(raised.value) and f"dreamkit cache RECIPE --out {cache}" in str(raised.value)


def test_only_what_is_asked_for_and_frozen_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learning = {"trainable": ["vision_encoder"]}
    made, reasons, _ = caches.make(tmp_path / "learning", caches.recipe(train=learning))
    assert [*made.tables] == ["latents"] and reasons.keys() == {"features"}
    assert "vision_encoder learns (train.trainable and model.adapters)" in reasons["features"]
    with pytest.raises(CacheError, match=r"computed once and for all:\n  features: vision_encoder learns"):
        caches.make(tmp_path / "none", caches.recipe(train=learning), only=["features"])
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior_module", None)
    with pytest.raises(
        CacheError,
        match=r"StableDiffusion gives `posterior`, but its posterior_module is None: .* test-plugin",
    ):
        caches.make(tmp_path / "none", caches.recipe(), only=["latents"])
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior", ImageDecoder.posterior)
    with pytest.raises(
        CacheError, match="StableDiffusion does not tell mean and standard deviation of its latents"
    ):
        caches.make(tmp_path / "none", caches.recipe(), only=["latents"])
    with (
        monkeypatch.context() as patched,
        pytest.raises(CacheError, match="there is no table 'pixels' to make; known: features, latents"),
    ):
        patched.delattr("dreamkit.cache.write.build")  # nothing is built before
        caches.make(tmp_path / "none", caches.recipe(), only=["pixels"])
    made, reasons, _ = caches.make(tmp_path / "features", caches.recipe(), only=["features"])
    assert [*made.tables] == ["features"] and not reasons
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "learning"]
    recipe = caches.recipe(tmp_path / "features")
    batch = caches.batch(model_of(recipe), opened(recipe))
    assert batch.pixels_NCHW is None and batch.targets_MCHW is not None and batch.latent_mean_Mchw is None


def broken_posterior(self: Any, targets_NCHW: Tensor) -> Any:
    return self.vea.encode(targets_NCHW)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("posterior_module", "vea", r"posterior_module is 'vea': AttributeError: .*vea"),
        ("posterior", broken_posterior, "posterior: AttributeError: .*vea"),
        (
            "posterior",
            ImageDecoder.posterior,
            "posterior: NotImplementedError: .* has neither `posterior` nor",
        ),
    ],
)
def test_a_mistake_of_a_plug_in_is_said_of_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    monkeypatch.setattr(f"dreamkit_diffusers.latent.LatentDecoder.{name}", value)
    for act in (lambda: caches.make(tmp_path / "new", caches.recipe()), lambda: opened(caches.recipe(cache))):
        with pytest.raises(
            CacheError, match=rf"latents cannot be made: image_decoder \(StableDiffusion\): {said}"
        ) as raised:
            act()
        assert "`dreamkit test-plugin DISTRIBUTION` says" in str(raised.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("root", ["", "unet"])
def test_latents_of_what_learns_have_a_cure_that_works(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """Without weights it is told where the part as a whole makes them."""
    monkeypatch.setattr("dreamkit_diffusers.latent.LatentDecoder.posterior_module", root)
    recipe = caches.recipe(cache, train={"trainable": ["image_decoder"]})
    cure = "freeze it, or make a cache without latents by --only features"
    assert [cure in problem.message for problem in cache_problems(fit(recipe, REGISTRY))] == [True] * (
        root == ""
    )
    with pytest.raises(CacheError, match="image_decoder learns") as raised:
        opened(recipe)
    assert cure in str(raised.value) and "anew" not in str(raised.value)


@pytest.mark.parametrize(("draw", "table"), [(True, "latents"), (False, "features")])
def test_what_the_data_has_no_pictures_for_has_no_table(tmp_path: Path, draw: bool, table: str) -> None:
    """A table that is there has the blank too, which completes batches."""
    documents = [Document((Text("a"), Image(tiny.picture(0), draw=draw, read=not draw)), name="a")]
    made = caches.make(tmp_path / "cache", caches.recipe(), documents).manifest
    assert [*made.tables] == [table] and made.tables[table]["pictures"] == 1  # type: ignore[literal-required]
    recipe = caches.recipe(tmp_path / "cache")
    computed = opened(recipe)
    assert [len(shards) for shards in computed.shards.values()] == [2]
    for given in (documents, [Document((Text("no picture at all"),), name="b")]):
        caches.batch(model_of(recipe), computed, given)
    text = [Document((Text("no picture at all"),), name="b")]
    with pytest.raises(
        CacheError, match="features: the data has no image to read\n  latents: the data has no image to draw"
    ):
        caches.make(tmp_path / "none", caches.recipe(), text)
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_may_take_up_a_cache(cache: Path, tmp_path: Path) -> None:
    settings = {"save_every": 2}
    straight = run(tmp_path / "straight", caches.recipe(train=settings))
    shutil.copytree(tmp_path / "straight/checkpoints/step-2", tmp_path / "resumed/checkpoints/step-2")
    resumed = run(tmp_path / "resumed", caches.recipe(cache, train=settings), resume=True)
    assert [entry["step"] for entry in resumed.log] == [3, 4]
    assert resumed.log[-1]["loss"] == pytest.approx(straight.log[-1]["loss"], rel=1e-4)


def test_a_plan_computes_nothing_that_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = plan(caches.recipe(), REGISTRY)
    counted = Counted(monkeypatch, (Clip, "forward"), (ImageDecoder, "encode"))
    planned = plan(caches.recipe(cache), REGISTRY)
    assert counted.calls == {"forward": BUILDING, "encode": 0}
    assert planned.flops < without.flops
    with pytest.raises(
        RecipeError, match=r"train\.cache: vision_encoder: features of shape \[4, 16\] in the cache"
    ):
        plan(caches.recipe(cache, **{"model.vision_encoder": changed(CLIP, image_size=24)}), REGISTRY)
