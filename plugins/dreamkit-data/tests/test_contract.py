"""The data sets fulfil their contract."""

from __future__ import annotations

from pathlib import Path

from dreamkit.testing import contracts
from dreamkit_data.table import Table, TableConfig
from dreamkit_data.tars import Tars, TarsConfig
from table_files import name, png, write_pairs
from tar_files import digit_metadata, write_img2dataset


def write_tars(folder: Path) -> TarsConfig:
    """Write two archives of pairs, with a choice of captions."""
    rows = [[digit_metadata(3 * shard + n, alt="a digit") for n in range(3)] for shard in range(2)]
    write_img2dataset(folder, rows)
    return TarsConfig(folder, caption={"txt": 2, "json:alt": 1})


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


@contracts.parametrize("dataset", contracts.tiny_dataset(Tars, write_tars))
def test_tars(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Table, write_parquet_pairs))
def test_table_of_parquet(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Table, write_tsv))
def test_table_of_text(check):
    check()
