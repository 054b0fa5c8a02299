"""The data sets fulfil their contract, for each format. A new one adds a line to `EXAMPLES`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import zstandard

from contract_tests import contract_test
from dreamkit.testing import contracts
from dreamkit_data.coco import Coco, CocoConfig
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.obelics import Obelics, ObelicsConfig
from dreamkit_data.table import Table, TableConfig
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits.documents import Digits
from table_files import (
    coco_name,
    name,
    write_coco_captions,
    write_karpathy,
    write_narratives,
    write_obelics,
    write_pairs,
    write_png,
)
from tar_files import digit_metadata, write_img2dataset, write_mmc4, write_mmc4_lines

DOCUMENTS = [
    Digits(Digits.Config(documents={"drawing": 1.0, "counting": 1.0, "sums": 1.0}))[n] for n in range(4)
]
CAPTIONS = {139: ["A one.", "A small one."], 285: ["A two."], 7: ["A three."]}
NARRATIVES = [(139, "A one, small."), (285, "A two."), (7, "A three.")]


def tars(folder: Path) -> TarsConfig:
    """Write two archives of pairs, with a choice of captions."""
    shards = [[digit_metadata(3 * shard + n, alt="a digit") for n in range(3)] for shard in range(2)]
    write_img2dataset(folder, shards)
    return TarsConfig(folder, caption={"txt": 2, "json:alt": 1})


def mmc4_tars(folder: Path) -> MMC4Config:
    write_mmc4(folder, [DOCUMENTS[:2], DOCUMENTS[2:]])
    return MMC4Config(folder)


def mmc4_lines(file: str, folder: Path) -> MMC4Config:
    return MMC4Config(write_mmc4_lines(folder / file, DOCUMENTS), place="after", max_images=1)


def parquet(folder: Path) -> TableConfig:
    """Write rows of two row groups."""
    return TableConfig(write_pairs(folder / "pairs.parquet", range(5)))


def tsv(folder: Path) -> TableConfig:
    """Write lines with paths of images."""
    for index in range(3):
        write_png(folder, f"{index}.png", index)
    lines = ["image\tcaption", *(f"{index}.png\ta {name(index)}" for index in range(3))]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    return TableConfig(folder / "pairs.tsv", direction="read")


def packed_tsv(folder: Path) -> TableConfig:
    config = tsv(folder)
    path = folder / "pairs.tsv.zst"
    path.write_bytes(zstandard.compress((folder / "pairs.tsv").read_bytes()))
    return replace(config, path=path)


def obelics(folder: Path) -> ObelicsConfig:
    documents = [[3, "A.\n\nB.", 4, None, "C."], ["D.", 6], ["E.", 7, 8]]
    return ObelicsConfig(write_obelics(folder / "a.parquet", documents, rows=2))


def coco_images(folder: Path, split: str) -> None:
    for number in CAPTIONS:
        write_png(folder, coco_name(number, split), number)


def coco(folder: Path) -> CocoConfig:
    coco_images(folder, "val2017")
    return CocoConfig(write_coco_captions(folder / "captions_val2017.json", CAPTIONS))


def karpathy(folder: Path) -> CocoConfig:
    coco_images(folder / "val2014", "val2014")
    splits = {139: "train", 285: "test", 7: "restval"}
    file = write_karpathy(folder / "dataset_coco.json", CAPTIONS, splits)
    return CocoConfig(file, split=["train", "restval"], direction="read")


def narratives(folder: Path) -> CocoConfig:
    coco_images(folder, "val2017")
    return CocoConfig(write_narratives(folder / "coco_val.jsonl", NARRATIVES))


EXAMPLES = {
    "tars": contracts.tiny_dataset(Tars, tars),
    "own tars": contracts.tiny_dataset(Tars),
    "own mmc4": contracts.tiny_dataset(MMC4),
    "mmc4 tars": contracts.tiny_dataset(MMC4, mmc4_tars),
    "mmc4 lines": contracts.tiny_dataset(MMC4, partial(mmc4_lines, "a_shard_0_v2.jsonl")),
    "mmc4 zip": contracts.tiny_dataset(MMC4, partial(mmc4_lines, "a_shard_0_v2.jsonl.zip")),
    "mmc4 gzip": contracts.tiny_dataset(MMC4, partial(mmc4_lines, "a.jsonl.gz")),
    "mmc4 zstandard": contracts.tiny_dataset(MMC4, partial(mmc4_lines, "a.jsonl.zst")),
    "parquet": contracts.tiny_dataset(Table, parquet),
    "tsv": contracts.tiny_dataset(Table, tsv),
    "tsv zstandard": contracts.tiny_dataset(Table, packed_tsv),
    "obelics": contracts.tiny_dataset(Obelics, obelics),
    "coco": contracts.tiny_dataset(Coco, coco),
    "karpathy": contracts.tiny_dataset(Coco, karpathy),
    "narratives": contracts.tiny_dataset(Coco, narratives),
}

test_contract = contract_test(EXAMPLES)
