"""Rows of Parquet files by number: the values of pyarrow, and damaged and hostile files."""

import os
import pickle
import random
import re
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from dreamkit import DocumentError, StorageError
from dreamkit_data import group_decoder
from dreamkit_data.parquet_rows import ParquetRows
from table_files import COLUMNS, IMAGE, png, write_pairs, write_parquet

images = st.binary(max_size=40)
types_of_images = {
    pa.binary(): images,
    pa.large_binary(): images,
    pa.dictionary(pa.int32(), pa.binary()): st.sampled_from([b"", b"a", b"bb"]),
    IMAGE: st.fixed_dictionaries({"bytes": st.none() | images, "path": st.none() | st.text(max_size=5)}),
    pa.string(): st.text(max_size=9),
}
types_of_captions = {
    pa.string(): st.text(max_size=9),
    pa.large_string(): st.text(max_size=9),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from(["", "ü", "b"]),
    pa.list_(pa.string()): st.lists(st.text(max_size=3), max_size=3),
    pa.large_list(pa.large_string()): st.lists(st.text(max_size=3), max_size=3),
}


# Files of other writers than pyarrow often have these encodings.
DELTA = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}


def fitting(encodings: dict[str, Any], table: pa.Table) -> dict[str, Any]:
    """Return settings of a writer with an encoding for each column of bytes and texts."""
    if "column_encoding" not in encodings:
        return encodings
    if any(pa.types.is_dictionary(column.type) for column in table.schema):
        return {}  # pyarrow cannot read this type back from other encodings
    leaves = ["image", "image.bytes", "image.path", "caption", "caption.list.element"]
    names = pq.ParquetFile(pa.BufferReader(written(table))).metadata.schema
    texts = {names.column(n).path for n in range(len(names)) if names.column(n).physical_type == "BYTE_ARRAY"}
    return encodings | {
        "column_encoding": {leaf: encodings["column_encoding"] for leaf in leaves if leaf in texts}
    }


def written(table: pa.Table) -> pa.Buffer:
    file = pa.BufferOutputStream()
    pq.write_table(table, file)
    return file.getvalue()


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    size = draw(st.integers(0, 12))
    columns = {}
    for name, types in (("image", types_of_images), ("caption", types_of_captions)):
        kind = draw(st.sampled_from(list(types)))
        values = draw(st.lists(st.none() | types[kind], min_size=size, max_size=size))
        columns[name] = pa.array(values, kind)
    return pa.table(columns | {"image.other": range(size), "other": range(size)})


@settings(max_examples=60)
@given(
    st.lists(tables(), min_size=1, max_size=3).filter(lambda tables: any(map(len, tables))),
    st.integers(1, 6),
    st.sampled_from([0, 60, 2**27]),
    st.sampled_from([1, 200, 2**28]),
    st.sampled_from(["none", "snappy", "zstd"]),
    st.sampled_from(
        [{"use_dictionary": True}, {"use_dictionary": False}, DELTA, DELTA | {"data_page_version": "2.0"}]
    ),
    st.randoms(use_true_random=False),
)
def test_rows_are_those_of_pyarrow_in_any_order(
    tmp_path_factory: pytest.TempPathFactory,
    tables: list[pa.Table],
    rows: int,
    large: int,
    most: int,
    compression: str,
    encodings: dict[str, Any],
    order: random.Random,
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    files = [folder / f"{number}.parquet" for number in range(len(tables))]
    for file, table in zip(files, tables, strict=True):
        pq.write_table(table, file, row_group_size=rows, compression=compression, **fitting(encodings, table))
    expected = [
        (f"{file}:{number}", file, {"image": row["image"], "caption": row["caption"]})
        for file in files
        for number, row in enumerate(pq.read_table(file).to_pylist())
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_decoder, "LARGE", large)
        patch.setattr(group_decoder, "PART", 2)
        data = ParquetRows(files, COLUMNS, folder / "index")
        data._reader.most_bytes = most
        assert len(data) == len(expected)
        for index in order.choices(range(len(expected)), k=2 * len(expected)):
            assert data[index] == expected[index]
            assert data[index - len(expected)] == expected[index]
    with pytest.raises(IndexError):
        data[len(expected)]


def test_a_second_start_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_pairs(tmp_path / f"{number}.parquet", range(3)) for number in range(3)]
    ParquetRows(files, COLUMNS)
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert len(ParquetRows(files, COLUMNS)) == 9


def damaged(data: bytes, where: int, change: bytes) -> bytes:
    return data[:where] if not change else data[:where] + change + data[where + len(change) :]


@settings(max_examples=150)
@given(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.booleans())
def test_a_damaged_file_is_an_error_with_its_name_or_has_rows(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: bytes, is_whole: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    file = write_pairs(folder / "a.parquet", range(7))
    before = file.read_bytes()
    file.write_bytes(damaged(before, int(place * len(before)), change))
    with pytest.MonkeyPatch.context() as patch:
        if not is_whole:
            patch.setattr(group_decoder, "LARGE", 0)
        try:
            data = ParquetRows([file], COLUMNS, folder / "index")
            for index in range(min(len(data), 20)):
                data[index]
        except DocumentError as error:
            assert not isinstance(error, StorageError)
            assert str(file) in str(error)


def test_a_damaged_row_group_names_itself_and_leaves_the_others(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "a.parquet", range(9), rows=3)
    chunk = pq.read_metadata(file).row_group(1).column(0)
    data = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(data)
    rows = ParquetRows([file], COLUMNS)
    for index in (4, 4, 3):
        with pytest.raises(DocumentError, match=f"{file}:{index}: cannot read row group 1: ") as error:
            rows[index]
        assert not isinstance(error.value, StorageError)
    assert [rows[index].values["image"]["bytes"] for index in (2, 6)] == [png(2), png(6)]


def test_fewer_rows_than_the_file_states_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_pairs(tmp_path / "a.parquet", range(4), rows=4)
    rows = ParquetRows([file], COLUMNS)
    rows.groups["rows"] = 6
    rows._rows_before[-1] = 6
    with pytest.raises(
        DocumentError, match=r"a.parquet:1: cannot read row group 0: it ends early; write or download"
    ):
        rows[1]


def test_text_that_is_not_utf8_names_row_and_column(tmp_path: Path) -> None:
    latin = pa.array([b"a", b"caf\xe9"]).view(pa.string())
    file = write_parquet(tmp_path / "a.parquet", {"image": [png(0)] * 2, "caption": latin})
    rows = ParquetRows([file], COLUMNS)
    assert rows[0].values["caption"] == "a"
    with pytest.raises(DocumentError, match=f"{file}:1: caption: .*utf-8"):
        rows[1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"img": [b"a"], "caption": ["x"]},
            "missing column 'image'; did you mean 'img'?",
        ),
        (
            {"image": [1.5], "caption": ["x"]},
            "column 'image': expected bytes, a path, or a struct of bytes and path, got double",
        ),
        ({"image": [{"data": b"a"}], "caption": ["x"]}, "got struct<data: binary>"),
        ({"image": [{"bytes": [b"a"]}], "caption": ["x"]}, "got struct<bytes: list<element: binary>>"),
        ({"image": [None], "caption": ["x"]}, "got null"),
        (
            {"image": [b"a"], "caption": [[["x"]]]},
            "column 'caption': expected a string or a list of strings, got list<element: list<element: string>>",
        ),
        (
            {"image": [b"a"], "caption": [b"x"]},
            "column 'caption': expected a string or a list of strings, got binary",
        ),
        (
            {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())},
            "no rows; correct the path",
        ),
    ],
)
def test_columns_that_do_not_fit_are_errors_at_the_start(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    file = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(DocumentError, match=re.escape(f"{file}: ") + ".*" + re.escape(message)):
        ParquetRows([file], COLUMNS)


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([b"a"]), pa.array(["x"]), pa.array(["y"])], ["image", "caption", "caption"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DocumentError, match="expected one column 'caption', got 2 columns of this name"):
        ParquetRows([tmp_path / "a.parquet"], COLUMNS)


def test_what_is_no_file_of_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("image,caption\n")
    with pytest.raises(
        DocumentError, match=r"a.parquet: cannot read the file as Parquet: .*; write or download it"
    ):
        ParquetRows([tmp_path / "a.parquet"], COLUMNS)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="pipe: expected a regular file"):
        ParquetRows([tmp_path / "pipe"], COLUMNS)


def test_a_file_that_changes_is_a_storage_error(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "a.parquet", range(9))
    rows = ParquetRows([file], COLUMNS)
    assert rows[0].values["image"]["bytes"] == png(0)
    write_pairs(file, range(10, 20), rows=2)
    with pytest.raises(StorageError, match=r"a.parquet changed since it was indexed"):
        rows[8]
    file.unlink()
    with pytest.raises(StorageError, match=r"a.parquet changed since it was indexed"):
        rows[5]


def read(rows: ParquetRows, indices: list[int]) -> list[bytes]:
    return [rows[index].values["image"]["bytes"] for index in indices]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same_rows(tmp_path: Path, method: str) -> None:
    rows = ParquetRows([write_pairs(tmp_path / "a.parquet", range(9))], COLUMNS)
    assert read(rows, [4, 8]) == [png(4), png(8)]
    decoded = rows._reader.decoded()
    decoded.changed.acquire()  # as a thread may that reads when the process forks
    decoded.running[0, 0] = 1
    with get_context(method).Pool(1) as pool:
        assert pool.apply(read, (pickle.loads(pickle.dumps(rows)), [4, 8, 0])) == [png(4), png(8), png(0)]
    if method == "fork":
        with get_context(method).Pool(1, initializer=keep, initargs=(rows,)) as pool:
            assert pool.apply(read_kept, ([4, 8, 0],)) == [png(4), png(8), png(0)]


def keep(rows: ParquetRows) -> None:
    global KEPT
    KEPT = rows


def read_kept(indices: list[int]) -> list[bytes]:
    return read(KEPT, indices)


ODD_TYPES = [
    pa.null(),
    pa.bool_(),
    pa.int64(),
    pa.float32(),
    pa.decimal128(9, 2),
    pa.timestamp("us"),
    pa.binary(4),
    pa.struct([("a", pa.binary())]),
    pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]),
    pa.struct([("bytes", pa.null()), ("path", pa.null())]),
    pa.map_(pa.string(), pa.binary()),
    pa.list_(pa.list_(pa.binary())),
    pa.list_(pa.int8()),
    pa.list_(pa.struct([("url", pa.string())])),
    pa.dictionary(pa.int8(), pa.int64()),
]


@pytest.mark.parametrize("kind", ["image", "caption", "images", "texts"])
@pytest.mark.parametrize("odd", ODD_TYPES, ids=str)
def test_a_column_of_another_type_is_refused_by_its_name(tmp_path: Path, kind: Any, odd: pa.DataType) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"x": pa.array([None], odd)})
    with pytest.raises(DocumentError, match=f"{file}: column 'x': expected .*, got "):
        ParquetRows([file], {"x": kind})
