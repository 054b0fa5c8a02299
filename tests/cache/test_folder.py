"""The folder of a cache: complete or absent, and an error if it is not as it was written."""

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
from dreamkit.errors import CacheError, OutputError, RecipeError
from dreamkit.storage.folders import partial_folder, replaced_folder
from dreamkit.storage.locks import exclusive


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.write(folder, caches.recipe())
    return folder


@pytest.fixture
def copy(cache: Path, tmp_path: Path) -> Path:
    """A cache that a test may damage."""
    return Path(shutil.copytree(cache, tmp_path / "copy"))


def set_keys(folder: Path, **values: Any) -> None:
    path = folder / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_text(folder: Path, old: str, new: str) -> None:
    path = folder / "cache.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def truncate(folder: Path) -> None:
    shard = folder / "features-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def flip_bit(folder: Path) -> None:
    shard = folder / "latents-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            truncate,
            r"copy: the cache is damaged; recreate it .*\n  features-00000.safetensors: expected \d+ bytes, got \d+",
        ),
        (
            lambda folder: (folder / "features-00000.safetensors").unlink(),
            "features-00000.safetensors: missing",
        ),
        (
            lambda folder: set_keys(folder, format=99),
            "format version 99, written by dreamkit .*; install a newer",
        ),
        (
            lambda folder: set_keys(folder, format=1),
            r"format version 1, written by dreamkit .* reads versions from 2 on; recreate it .* --overwrite",
        ),
        (lambda folder: set_keys(folder, tables=[]), "cache.json: the cache is damaged; .*\n  tables: "),
        (lambda folder: set_keys(folder, tables={}), "tables: expected at least one, got none"),
        (
            lambda folder: set_keys(folder, files={}),
            "files: expected names of 'features' numbered from 0, got none",
        ),
        (
            lambda folder: replace_text(
                folder, '"dtype": "float32",\n          "shape": [', '"dtype": "float33", "shape": ['
            ),
            r"tables\.latents\.tensors\.mean\.dtype: expected .* got 'float33'; did you mean 'float32'\?",
        ),
        (
            lambda folder: replace_text(
                folder, '"shape": [\n            4,\n            16', '"shape": [-4, 16'
            ),
            r"tables\.features\.tensors\.features\.shape: expected sizes of at least 0, got \[-4, 16\]",
        ),
        (
            lambda folder: replace_text(folder, '\n        "std": {', '\n        "stb": {'),
            r"the cache is damaged; recreate it .*\n  latents: expected 4 rows of .*'stb'.*, got 4 of .*'std'",
        ),
        (
            lambda folder: replace_text(folder, '"mean": {\n          "dt', '"men": {\n          "dt'),
            r"tables\.latents\.tensors: 'mean' is missing",
        ),
        (
            lambda folder: replace_text(folder, '"images": 6', '"images": 7'),
            r"damaged.*\n  features: expected 8 rows of .*, got 7 of",
        ),
        (
            lambda folder: replace_text(folder, '"images": 6', '"images": 0'),
            r"tables\.features\.images: expected at least 1, got 0",
        ),
        (
            lambda folder: (folder / "cache.json").write_text("{"),
            r"cache\.json: the cache is damaged; recreate it .* --overwrite\n  JSONDecodeError: ",
        ),
        (
            lambda folder: (folder / "cache.json").unlink(),
            "copy is not a cache: it has no cache.json; name the folder of a cache, or create one",
        ),
        (shutil.rmtree, "copy is not a cache: there is no such folder; create it from .*/copy$"),
    ],
)
def test_a_damaged_cache_is_refused_before_training(
    copy: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    damage(copy)
    with pytest.raises((CacheError, RecipeError), match=message):
        caches.run(tmp_path / "out", caches.recipe(copy))
    assert not (tmp_path / "out").exists()


def test_changed_bytes_are_found_by_reading_every_file(copy: Path) -> None:
    manifest = CacheManifest.read(copy)
    manifest.verify(copy, read=True)
    flip_bit(copy)
    manifest.verify(copy, read=False)
    with pytest.raises(CacheError, match=r"latents-00000\.safetensors: .*sha256 differs"):
        manifest.verify(copy, read=True)


@pytest.mark.parametrize("place", [partial_folder, replaced_folder])
def test_the_error_about_a_missing_cache_names_the_folder_an_interruption_left(
    copy: Path, place: Any
) -> None:
    copy.rename(place(copy))
    with pytest.raises(
        CacheError, match=f"missing, but an interrupted save left {place(copy)}; rename that to copy"
    ):
        CacheManifest.read(copy)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with (
        exclusive(out),
        pytest.raises(OutputError, match=f"^{out} is being written by another dreamkit command; wait"),
    ):
        caches.write(out, caches.recipe())
    assert not [*tmp_path.iterdir()]


def test_the_files_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    other = partial_folder(tmp_path / "cache")
    other.mkdir()
    (other / "features-00007.safetensors").touch()
    caches.write(tmp_path / "cache", caches.recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not (tmp_path / "cache" / "features-00007.safetensors").exists()


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        caches.write(tmp_path / "cache", caches.recipe())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes.pop("cache") == 0o750 and len(modes) == 3 and {*modes.values()} == {0o640}


class Interrupting(layouts.TinyDocuments):
    def __getitem__(self, index: int) -> Document:
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_an_interruption_leaves_the_old_cache_and_no_new_one(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for folder in (copy, copy.with_name("new")):
        with pytest.raises(KeyboardInterrupt):
            caches.make_cache(caches.recipe(), REGISTRY, folder, datasets=[Interrupting()], overwrite=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_cache_is_replaced_only_with_overwrite(copy: Path) -> None:
    documents = tiny.documents()[:1]
    with pytest.raises(CacheError, match=r"copy is not empty; .* replace the cache with --overwrite"):
        caches.write(copy, caches.recipe(), documents)
    assert not caches.write(copy.with_name("new"), caches.recipe(), documents, overwrite=True).replaced
    assert caches.write(copy, caches.recipe(), documents, overwrite=True).replaced
    assert CacheManifest.read(copy).tables["latents"]["images"] == 1


def test_a_folder_that_is_not_a_cache_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        CacheError, match="is not empty, and is not a cache; pass another folder with --out, or remove it"
    ):
        caches.write(tmp_path, caches.recipe(), overwrite=True)


def test_another_number_of_data_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="data: expected 1 data set, one for each section, got 0"):
        caches.make_cache(caches.recipe(), REGISTRY, tmp_path / "new", datasets=[])
