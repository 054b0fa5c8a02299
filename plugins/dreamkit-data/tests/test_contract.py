"""The data sets fulfil their contract."""

from __future__ import annotations

from pathlib import Path

from dreamkit.testing import contracts
from dreamkit_data.coco import Coco, CocoConfig
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.obelics import Obelics, ObelicsConfig
from dreamkit_data.table import Table, TableConfig
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits.documents import Digits
from table_files import coco_name, name, png, write_coco_captions, write_obelics, write_pairs, write_png
from tar_files import digit_metadata, write_img2dataset, write_mmc4, write_mmc4_lines


def write_tars(folder: Path) -> TarsConfig:
    """Write two archives of pairs, with a choice of captions."""
    rows = [[digit_metadata(3 * shard + n, alt="a digit") for n in range(3)] for shard in range(2)]
    write_img2dataset(folder, rows)
    return TarsConfig(folder, caption={"txt": 2, "json:alt": 1})


def write_mmc4_tars(folder: Path) -> MMC4Config:
    """Write documents with several images each, in two archives."""
    counting = Digits(Digits.Config(documents={"counting": 1.0}))
    write_mmc4(folder, [[counting[3 * shard + n] for n in range(3)] for shard in range(2)])
    return MMC4Config(folder)


def write_mmc4_zip(folder: Path) -> MMC4Config:
    """Write a packed file of documents beside the folder of its images."""
    sums = Digits(Digits.Config(documents={"sums": 1.0}))
    return MMC4Config(write_mmc4_lines(folder / "docs.jsonl.zip", [sums[n] for n in range(4)]), max_images=2)


def write_parquet_pairs(folder: Path) -> TableConfig:
    """Write rows of two row groups."""
    return TableConfig(write_pairs(folder / "pairs.parquet", range(5)))


def write_tsv(folder: Path) -> TableConfig:
    """Write lines with paths of images."""
    for index in range(3):
        (folder / f"{index}.png").write_bytes(png(index))
    lines = ["image\tcaption", *(f"{index}.png\ta {name(index)}" for index in range(3))]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return TableConfig(folder / "pairs.tsv", direction="read")


def write_coco(folder: Path) -> CocoConfig:
    """Write images with one and two captions."""
    captions = {7: ["a digit", "a number"], 139: ["a digit"]}
    for number in captions:
        write_png(folder / "val2017", coco_name(number), number)
    return CocoConfig(write_coco_captions(folder / "captions.json", captions), images=folder / "val2017")


def write_web_pages(folder: Path) -> ObelicsConfig:
    """Write documents of texts and images; one has an image without a stored copy."""
    return ObelicsConfig(write_obelics(folder / "a.parquet", [["A", 1, "B"], [2, None, "C"], [3]], rows=2))


@contracts.parametrize("dataset", contracts.tiny_dataset(Tars, write_tars))
def test_tars(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(MMC4, write_mmc4_tars))
def test_mmc4_in_tars(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(MMC4, write_mmc4_zip))
def test_mmc4_in_lines(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Table, write_parquet_pairs))
def test_table_of_parquet(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Table, write_tsv))
def test_table_of_text(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Coco, write_coco))
def test_coco(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Obelics, write_web_pages))
def test_obelics(check):
    check()
