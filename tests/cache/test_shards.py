"""Keys of images, and rows found by them in files of a limited size."""

import io
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image as PIL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import tiny
from dreamkit.cache.manifest import shard_name
from dreamkit.cache.shards import KEY_BYTES, KEYS, Shards, ShardWriter, picture_key
from dreamkit.errors import CacheError


def reread(picture: PIL.Image, kind: str, **options: object) -> PIL.Image:
    """Save an image to a file in memory and return the image read from it."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    result = PIL.open(file)
    result.load()
    return result


def palette(first: int, **info: object) -> PIL.Image:
    picture = PIL.new("P", (4, 4))
    picture.putpalette([first, 20, 30, 40, 50, 60])
    picture.info |= info
    return picture


def rotated(orientation: int) -> PIL.Image:
    exif = PIL.Exif()
    exif[0x0112] = orientation
    return reread(tiny.picture(0), "jpeg", exif=exif)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (tiny.picture(0), tiny.picture(1)),
        (PIL.new("L", (4, 4)), PIL.new("RGB", (4, 4))),
        (PIL.new("L", (4, 2)), PIL.new("L", (2, 4))),
        (palette(10), palette(11)),
        (palette(10), palette(10, transparency=0)),
        (palette(10, transparency=0), palette(10, transparency=1)),
        (rotated(1), rotated(6)),
    ],
    ids=["pixels", "mode", "size", "palette", "transparency", "transparent colour", "orientation"],
)
def test_images_that_look_different_to_a_part_have_different_keys(one: PIL.Image, other: PIL.Image) -> None:
    assert picture_key(one) != picture_key(other)


@pytest.mark.parametrize("picture", [tiny.picture(0), palette(10), palette(10, transparency=0), rotated(6)])
def test_equal_images_have_one_key(picture: PIL.Image) -> None:
    key = picture_key(picture)
    assert len(key) == KEY_BYTES
    assert key == picture_key(picture.copy()) == picture_key(pickle.loads(pickle.dumps(picture)))
    assert picture_key(reread(tiny.picture(0), "png")) == picture_key(tiny.picture(0))


# keys with equal first halves, which hashes hardly ever have
keys = st.lists(
    st.builds(
        lambda first, second: bytes([first] * 8 + [second] * 8), st.integers(0, 3), st.integers(0, 255)
    ),
    unique=True,
    min_size=1,
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(keys=keys, most=st.integers(1, 7), batch=st.integers(1, 9), data=st.data())
def test_rows_are_found_by_their_keys(
    tmp_path_factory: pytest.TempPathFactory, keys: list[bytes], most: int, batch: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rows = {"a": torch.randn(len(keys), 2, 3), "b": torch.arange(len(keys), dtype=torch.int64)}
    writer = ShardWriter(folder, "rows", most)
    for start in range(0, len(keys), batch):
        part = slice(start, start + batch)
        writer.add(keys[part], {name: tensor[part] for name, tensor in rows.items()})
    writer.flush()
    files = [folder / shard_name("rows", number) for number in range(writer.files)]
    assert sorted(folder.iterdir()) == files and len(files) == -(-len(keys) // most)
    shards = Shards(files)
    assert len(shards) == len(keys)
    indices = data.draw(st.lists(st.sampled_from(range(len(keys))), min_size=1))
    places = [shards.find(keys[index]) for index in indices]
    read = shards.rows([place for place in places if place is not None])
    assert read.keys() == rows.keys()
    for name, tensor in read.items():
        assert torch.equal(tensor, rows[name][indices])
    absent = data.draw(st.binary(min_size=16, max_size=16).filter(lambda key: key not in keys))
    assert shards.find(absent) is None


def test_files_are_numbered_from_the_first_one_of_a_block(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "rows", 1, first_file=4)
    writer.add([bytes(16), bytes([1] * 16)], {"a": torch.zeros(2, 5)})
    writer.flush()
    assert writer.files == 6
    with safe_open(tmp_path / shard_name("rows", 5), "pt") as shard:
        assert shard.get_tensor(KEYS).tolist() == [[1] * 16]


def read_row(shards: Shards, key: bytes) -> Tensor:
    place = shards.find(key)
    assert place is not None
    return shards.rows([place])["a"]


def test_each_process_opens_its_own_files(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "rows", 2)
    keys = [bytes([number] * 16) for number in range(5)]
    writer.add(keys, {"a": torch.arange(5.0)})
    writer.flush()
    shards = Shards([tmp_path / shard_name("rows", number) for number in range(writer.files)])
    before = len(shards._handles)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_row, (shards, keys[3])).tolist() == [3.0]
    assert len(shards._handles) == before
    copy = pickle.loads(pickle.dumps(shards))
    assert not copy._handles and read_row(copy, keys[4]).tolist() == [4.0]


ROWS = {KEYS: torch.arange(32, dtype=torch.uint8).view(2, 16), "a": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.zeros(2, 3)},
        {**ROWS, KEYS: torch.zeros(2, 16)},
        {**ROWS, KEYS: torch.zeros(2, 8, dtype=torch.uint8)},
        {KEYS: torch.zeros(0, 16, dtype=torch.uint8), "a": torch.zeros(0, 3)},
        {**ROWS, "a": torch.zeros(3, 3)},
        {**ROWS, "a": torch.tensor(1.0)},
        {**ROWS, "a": torch.zeros(2, 4)},
        {**ROWS, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**ROWS, "b": torch.zeros(2)},
    ],
    ids=["no keys", "float keys", "short keys", "no rows", "rows", "scalar", "shape", "dtype", "names"],
)
def test_a_file_that_is_no_shard_of_its_table_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    files = [tmp_path / shard_name("rows", number) for number in range(2)]
    save_file(ROWS, files[0])
    save_file(tensors, files[1])
    with pytest.raises(
        CacheError, match=r"rows-00001\.safetensors: expected rows of a cache, got other tensors"
    ):
        Shards(files)


def test_the_error_about_an_unreadable_file_names_it(tmp_path: Path) -> None:
    file = tmp_path / shard_name("rows", 0)
    file.write_bytes(b"no tensors")
    with pytest.raises(CacheError, match=r"rows-00000\.safetensors cannot be read"):
        Shards([file])
