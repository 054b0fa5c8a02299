"""A cache holds the outputs for images in the size that its recipe decodes them in, and is read in this size alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL

import caches
from caches import REGISTRY, run
from dreamkit.build.fit import fit
from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.recipe_check import cache_problems
from dreamkit.cache.write import make_cache
from dreamkit.data.pairs import Pairs
from dreamkit.errors import CacheError, RecipeError, TrainingError

SETTING = "decoded_side (train.decode_margin)"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Return pairs with JPEG images of 100 x 72 pixels, for parts that resize them to 16."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(6):
        pixels = PIL.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        pixels.resize((100, 72), PIL.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
        (folder / f"{number}.txt").write_text(f"image {number}")
    return Pairs(Pairs.Config(folder))


def recipe(margin: float | None, cache: Path | None = None, **train: Any) -> Any:
    return caches.recipe(cache, {"decode_margin": margin, "precision": "float64", **train})


def losses(result: Any) -> list[float]:
    return [entry["loss"] for entry in result.log]


def test_training_from_a_cache_has_the_losses_of_training_from_small_images(
    data: Pairs, tmp_path: Path
) -> None:
    make_cache(recipe(2, workers=1), REGISTRY, tmp_path / "cache", datasets=[data])
    manifest = CacheManifest.read(tmp_path / "cache")
    assert {table["identity"]["settings"][SETTING] for table in manifest.tables.values()} == {32}
    small = losses(run(tmp_path / "small", recipe(2), datasets=[data]))
    cached = losses(run(tmp_path / "cached", recipe(2, tmp_path / "cache", workers=2), datasets=[data]))
    workers = losses(run(tmp_path / "workers", recipe(2, workers=2), datasets=[data]))
    whole = losses(run(tmp_path / "whole", recipe(None), datasets=[data]))
    assert small == pytest.approx(workers, rel=1e-12) and small == pytest.approx(cached, rel=1e-6)
    assert small != pytest.approx(whole, rel=1e-7) and small == pytest.approx(whole, rel=0.05)
    with pytest.raises(TrainingError, match=r"train\.decode_margin: was 2(\.0)?, is 1"):
        run(tmp_path / "small", recipe(1), datasets=[data], resume=True)


@pytest.mark.parametrize(
    ("cached", "now", "values"),
    [
        (None, 2, "unset in the cache, 32 now"),
        (2, None, "32 in the cache, unset now"),
        (1, 2, "16 in the cache, 32"),
    ],
)
def test_a_cache_of_images_of_another_size_is_refused(
    data: Pairs, tmp_path: Path, cached: float | None, now: float | None, values: str
) -> None:
    make_cache(recipe(cached), REGISTRY, tmp_path / "cache", datasets=[data])
    settings = recipe(now, tmp_path / "cache")
    problems = cache_problems(fit(settings, REGISTRY))
    assert f"{SETTING}: {values}" in str(problems[0])
    with pytest.raises((CacheError, RecipeError), match="decoded_side"):
        run(tmp_path / "out", settings, datasets=[data])


def test_a_cache_of_whole_images_does_not_mention_their_size(data: Pairs, tmp_path: Path) -> None:
    make_cache(recipe(None), REGISTRY, tmp_path / "cache", datasets=[data])
    assert "decode" not in (tmp_path / "cache" / CacheManifest.FILE).read_text()
