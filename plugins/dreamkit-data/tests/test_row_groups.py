"""Row groups of Parquet files: decoded once, by several threads, in bounded memory."""

import errno
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamkit import StorageError
from dreamkit_data import group_decoder, parquet_rows
from dreamkit_data.parquet_rows import ParquetRows
from table_files import COLUMNS, png, write_pairs, write_parquet


class Reads:
    """Counts of row groups that are decoded, and of footers that are read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        self.footers = 0
        reads = self

        class Counting(pq.ParquetFile):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                reads.footers += more.get("metadata") is None
                super().__init__(*arguments, **more)

            def iter_batches(self, rows: int, groups: list[int], *arguments: Any, **more: Any) -> Any:
                reads.groups += groups
                return super().iter_batches(rows, groups, *arguments, **more)

        patch.setattr(group_decoder.pq, "ParquetFile", Counting)


def test_a_row_group_is_decoded_once_for_neighbouring_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ParquetRows([write_pairs(tmp_path / "a.parquet", range(12), rows=4)], COLUMNS)
    reads = Reads(monkeypatch)
    order = [2, 0, 3, 1, 5, 4, 7, 6, 11, 9, 10, 8]
    assert [data[index].values["image"]["bytes"] for index in order] == [png(index) for index in order]
    assert (reads.groups, reads.footers) == ([0, 1, 2], 1)


def test_the_kept_rows_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = [os.urandom(1000) for _ in range(60)]
    file = write_parquet(tmp_path / "a.parquet", {"image": blobs, "caption": ["x"] * 60}, rows=5)
    data = ParquetRows([file], COLUMNS)
    data._reader.most_bytes = 22_000
    for index in range(60):
        assert data[index].values["image"] == blobs[index]
        assert data._reader.decoded().bytes <= 22_000
        assert data._reader.decoded().bytes == sum(
            batch.nbytes for batches in data._reader.decoded().parts.values() for batch in batches
        )


def test_a_large_row_group_is_read_in_parts_from_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [os.urandom(1000) for _ in range(60)]
    file = write_parquet(tmp_path / "a.parquet", {"image": blobs, "caption": ["x"] * 60}, rows=60)
    monkeypatch.setattr(group_decoder, "LARGE", 10_000)
    data = ParquetRows([file], COLUMNS)
    data._reader.most_bytes = 22_000
    reads = Reads(monkeypatch)
    assert [data[index].values["image"] for index in range(60)] == blobs
    assert reads.groups == [0]
    assert max(batch.num_rows for parts in data._reader.decoded().parts.values() for batch in parts) <= 10
    assert data[0].values["image"] == blobs[0]
    assert reads.groups == [0, 0]


def test_threads_decode_different_row_groups_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ParquetRows([write_pairs(tmp_path / "a.parquet", range(16), rows=4)], COLUMNS)
    together = Barrier(4, timeout=60)
    decode = group_decoder.GroupDecoder.decode

    def waiting(*arguments: Any) -> Any:
        together.wait()
        return decode(*arguments)

    monkeypatch.setattr(group_decoder.GroupDecoder, "decode", waiting)
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(data.__getitem__, range(16)))
    assert [row.values["image"]["bytes"] for row in rows] == [png(index) for index in range(16)]
    assert together.n_waiting == 0  # a fifth call would wait


def test_row_groups_that_threads_decode_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [os.urandom(1000) for _ in range(64)]
    file = write_parquet(tmp_path / "a.parquet", {"image": blobs, "caption": ["x"] * 64}, rows=4)
    data = ParquetRows([file], COLUMNS)
    data._reader.most_bytes = 13_000
    decode, running = group_decoder.GroupDecoder.decode, []

    def counted(*arguments: Any) -> Any:
        running.append(dict(data._reader.decoded().running))
        time.sleep(0.002)
        return decode(*arguments)

    monkeypatch.setattr(group_decoder.GroupDecoder, "decode", counted)
    order = random.Random(0).choices(range(64), k=200)
    with ThreadPoolExecutor(16) as pool:
        assert [row.values["image"] for row in pool.map(data.__getitem__, order)] == [blobs[n] for n in order]
    assert max(map(len, running)) == 2 and data._reader.decoded().running == {}


@pytest.mark.parametrize("large", [10_000, 2**27])
def test_rows_are_those_of_pyarrow_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(group_decoder, "LARGE", large)
    blobs = [os.urandom(1000) for _ in range(240)]
    columns = {"image": blobs, "caption": ["x"] * 240}
    data = ParquetRows([write_parquet(tmp_path / "a.parquet", columns, rows=60)], COLUMNS)
    data._reader.most_bytes = 100_000
    order = random.Random(0).choices(range(240), k=500)
    with ThreadPoolExecutor(8) as pool:
        assert [row.values["image"] for row in pool.map(data.__getitem__, order)] == [blobs[n] for n in order]


def test_threads_that_wait_for_a_damaged_row_group_read_it_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ParquetRows([write_pairs(tmp_path / "a.parquet", range(4), rows=4)], COLUMNS)
    decode, calls = group_decoder.GroupDecoder.decode, []

    def failing_once(*arguments: Any) -> Any:
        calls.append(1)
        time.sleep(0.01)
        if len(calls) == 1:
            raise OSError(errno.EIO, "the disk fails")
        return decode(*arguments)

    monkeypatch.setattr(group_decoder.GroupDecoder, "decode", failing_once)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(data.__getitem__, index) for index in range(4)]
    errors = [result.exception() for result in results]
    assert sum(isinstance(error, StorageError) for error in errors) == 1
    assert errors.count(None) == 3 and len(calls) == 2


def test_a_note_names_row_groups_that_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "a.parquet", range(4), rows=1)
    write_pairs(tmp_path / "b.parquet", range(4), rows=2)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    rows = ParquetRows(files, COLUMNS)
    assert rows.notes == []
    monkeypatch.setattr(parquet_rows, "LARGE", int(rows.groups["bytes"][:4].max()))
    (note,) = ParquetRows(files, COLUMNS).notes
    assert note.startswith(f"{tmp_path / 'b.parquet'}: 2 row groups of more than 0 MiB")


@pytest.mark.parametrize("kind", ["image", "images"])
def test_a_value_repeated_for_many_rows_takes_memory_once(tmp_path: Path, kind: str) -> None:
    value, rows = os.urandom(100_000), 20_000  # 2 GB if each row had its own
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    if kind == "images":
        column = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), column)
    file = write_parquet(tmp_path / "a.parquet", {"image": column}, rows=rows)
    assert file.stat().st_size < 200_000
    data = ParquetRows([file], {"image": kind})
    before = pa.total_allocated_bytes()
    assert data[rows - 1].values["image"] == (value if kind == "image" else [value])
    assert data._reader.decoded().bytes < 1_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_only_the_columns_that_are_read_are_decoded(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "a.parquet", range(3), other=pa.array([os.urandom(500)] * 3))
    chunk = pq.read_metadata(file).row_group(0).column(3)
    assert chunk.path_in_schema == "other"
    data = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    file.write_bytes(data)
    assert ParquetRows([file], COLUMNS)[2].values["image"]["bytes"] == png(2)
