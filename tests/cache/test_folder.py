"""The folder of a cache: whole or not there, and an error where it is not as it was written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import caches
import layouts
import tiny
from caches import REGISTRY
from dreamkit.cache.manifest import CacheManifest
from dreamkit.document import Document
from dreamkit.errors import CacheError, RecipeError
from dreamkit.storage.folders import partial_folder, replaced_folder
from dreamkit.training.run import train_recipe


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.make(folder, caches.recipe())
    return folder


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A cache that may be damaged."""
    return Path(shutil.copytree(cache, tmp_path / "copied"))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reword(folder: Path, old: str, new: str) -> None:
    path = folder / "cache.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cut(folder: Path) -> None:
    shard = folder / "features-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(folder: Path) -> None:
    shard = folder / "latents-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            cut,
            r"copied: the cache is damaged; make it anew .*\n  features-00000.safetensors: \d+ bytes, but \d+ were",
        ),
        (
            lambda folder: (folder / "features-00000.safetensors").unlink(),
            "features-00000.safetensors: missing",
        ),
        (
            lambda folder: rewrite(folder, format=99),
            "format version 99, written by dreamkit .*; install a newer",
        ),
        (lambda folder: rewrite(folder, tables=[]), r"tables: expected an object, got \[\]"),
        (lambda folder: rewrite(folder, tables={}), "tables: none found"),
        (lambda folder: rewrite(folder, files={}), "files: 0 of 'features' found, but 1 shards"),
        (
            lambda folder: reword(
                folder, '"dtype": "float32",\n          "shape": [', '"dtype": "float33", "shape": ['
            ),
            r"tables\.latents\.tensors\.mean\.dtype: 'float33' found; did you mean 'float32'\?",
        ),
        (
            lambda folder: reword(folder, '"shape": [\n            4,\n            16', '"shape": [-4, 16'),
            r"tables\.features\.tensors\.features\.shape: \[-4, 16\] found, but no size is below 0",
        ),
        (
            lambda folder: reword(folder, '\n        "std": {', '\n        "stb": {'),
            r"the cache is damaged; make it anew .*\n  latents: 4 rows of .*'std'.* are there, but 4 of .*'stb'",
        ),
        (
            lambda folder: reword(folder, '"mean": {\n          "dt', '"men": {\n          "dt'),
            "missing: mean",
        ),
        (
            lambda folder: reword(folder, '"pictures": 6', '"pictures": 7'),
            r"damaged.*\n  features: 7 rows of .* are there, but 8 of",
        ),
        (
            lambda folder: reword(folder, '"pictures": 6', '"pictures": 0'),
            "0 found, but there is one at least",
        ),
        (
            lambda folder: (folder / "cache.json").write_text("{"),
            r"not a manifest of dreamkit: JSONDecodeError: .*; make it anew .* --overwrite",
        ),
        (
            lambda folder: (folder / "cache.json").unlink(),
            "copied is not a cache: it has no cache.json; name one, or",
        ),
        (shutil.rmtree, "copied is not a cache: there is no such folder; make it anew"),
    ],
)
def test_a_damaged_cache_is_an_error(copied: Path, tmp_path: Path, damage: Any, said: str) -> None:
    damage(copied)
    with pytest.raises((CacheError, RecipeError), match=said):
        train_recipe(caches.recipe(copied), REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments()])
    assert not (tmp_path / "out").exists()


def test_what_was_changed_is_found_where_all_is_read(copied: Path) -> None:
    manifest = CacheManifest.read(copied)
    manifest.verify(copied, read=True)
    flip(copied)
    manifest.verify(copied, read=False)
    with pytest.raises(CacheError, match=r"latents-00000\.safetensors: its content has changed"):
        manifest.verify(copied, read=True)


@pytest.mark.parametrize("left", [partial_folder, replaced_folder])
def test_a_cache_that_an_interruption_left_elsewhere_is_named(copied: Path, left: Any) -> None:
    copied.rename(left(copied))
    with pytest.raises(
        CacheError, match=f"missing, but an interrupted save left {left(copied)}; rename that to copied"
    ):
        CacheManifest.read(copied)


def test_two_do_not_write_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "cache"
    other = partial_folder(out)
    other.mkdir()
    (other / "features-00000.safetensors").touch()
    with pytest.raises(
        CacheError, match=f"{other} is there: another `dreamkit cache` is writing {out}, or one was"
    ):
        caches.make(out, caches.recipe())
    assert [*tmp_path.rglob("*.safetensors")] == [other / "features-00000.safetensors"]


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        caches.make(tmp_path / "cache", caches.recipe())
    finally:
        os.umask(before)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert found.pop("cache") == 0o750 and len(found) == 3 and {*found.values()} == {0o640}


class Breaking(layouts.TinyDocuments):
    def __getitem__(self, index: int) -> Document:
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_an_interrupted_cache_leaves_nothing_and_the_one_before(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    for folder in (copied, copied.with_name("new")):
        with pytest.raises(KeyboardInterrupt):
            caches.make_cache(caches.recipe(), REGISTRY, folder, datasets=[Breaking()], overwrite=True)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]
    with pytest.raises(CacheError, match=r"copied is not empty; .* replace the cache in it by --overwrite"):
        caches.make(copied, caches.recipe(), tiny.documents()[:1])
    caches.make(copied, caches.recipe(), tiny.documents()[:1], overwrite=True)
    assert CacheManifest.read(copied).tables["latents"]["pictures"] == 1


def test_what_is_no_cache_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CacheError, match="is not empty, and is not a cache; name another folder by --out"):
        caches.make(tmp_path, caches.recipe())
    with pytest.raises(CacheError, match="no documents to cache the pictures of"):
        caches.make_cache(caches.recipe(), REGISTRY, tmp_path / "new", datasets=[])
