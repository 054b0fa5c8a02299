"""Rows of text tables by number: the values of Python's csv, offsets, damaged files."""

import csv
import gzip
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from dreamkit import DocumentError, StorageError
from dreamkit_data import text_lines, text_rows
from dreamkit_data.text_rows import Layout, TextRows

BOTH = ("0", "2")


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def values(rows: TextRows) -> list[list[str]]:
    return [list(rows[index].values.values()) for index in range(len(rows))]


# csv writes a carriage return alone without quotes, and reads it as the end of a line.
any_text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6) | st.sampled_from(
    ['"', 'a"b', "a\nb", ",", "\t", "é\r\n"]
)
plain_text = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n\0"), max_size=6)


def records(value: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[str]]]:
    return st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60)
@given(records(any_text), st.sampled_from(",\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_quoted_rows_are_those_that_csv_wrote(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], separator: str, end: str, has_bom: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=separator, lineterminator=end).writerows([["a", "b", "c"], *rows])
    path = write(folder / "a.csv", ("\ufeff" if has_bom else "") + file.getvalue())
    data = TextRows([path], Layout(("c", "a"), quotes=True), folder / "index")
    assert values(data) == [[row[2], row[0]] for row in rows]
    breaks = [sum(value.count("\n") for value in row) + 1 for row in rows]
    places = [f"{path}:{2 + sum(breaks[:number])}" for number in range(len(rows))]
    assert [data[index].where for index in range(len(rows))] == places


@settings(max_examples=60)
@given(records(plain_text), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 3))
def test_plain_rows_are_those_between_tabs(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], end: str, is_ended: bool, files: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    text = end.join("\t".join(row) for row in rows) + (end if is_ended else "")
    paths = [write(folder / f"{number}.tsv", text) for number in range(files)]
    data = TextRows(paths, Layout(BOTH, has_header=False), folder / "index")
    assert values(data) == [[row[0], row[2]] for row in rows] * files
    assert [data[index].where for index in range(len(rows))] == [
        f"{paths[0]}:{number}" for number in range(1, len(rows) + 1)
    ]
    assert data[-1] == data[len(data) - 1]
    assert data[-1].table == paths[-1]


def test_blank_lines_are_passed_over(tmp_path: Path) -> None:
    for quotes in (True, False):
        file = write(tmp_path / f"{quotes}.tsv", "a\tb\tc\n\n1\t2\t3\n\r\n\n4\t5\t6\n\n")
        data = TextRows([file], Layout(("a", "c"), quotes=quotes))
        assert values(data) == [["1", "3"], ["4", "6"]]
        assert [data[0].where, data[1].where] == [f"{file}:3", f"{file}:6"]


def test_quotes_belong_to_plain_values(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", 'a\tb\n"x"\t5" pipe\n')
    rows = TextRows([file], Layout(("a", "b")))
    assert values(rows) == [['"x"', '5" pipe']]
    assert rows.notes == [
        f"{file}: quotes around values stay in 1 row; set quotes: true to remove them, or quotes: false if they belong "
        "to the values"
    ]
    assert TextRows([file], Layout(("a", "b"), quotes=False)).notes == []
    assert TextRows([file], Layout(("b",))).notes == []
    assert values(
        TextRows([write(tmp_path / "b.tsv", 'a\tb\n"x, ""y"\t5\n')], Layout(("a", "b"), quotes=True))
    ) == [['x, "y', "5"]]


def test_a_row_of_a_large_image_is_read_by_its_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = "A" * 1_000_000
    for quotes in (True, False):
        file = write(tmp_path / f"{quotes}.tsv", f"a\tb\n{image}\tx\n{image}\ty\n")
        data = TextRows([file], Layout(("a", "b"), quotes=quotes))
        assert data[1].values == {"a": image, "b": "y"}


def test_a_second_start_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.tsv", "a\tb\n1\t2\n")
    TextRows([file], Layout(("a", "b")))
    monkeypatch.setattr(text_rows, "read_rows", None)
    assert values(TextRows([file], Layout(("a", "b")))) == [["1", "2"]]


@pytest.mark.parametrize(
    ("data", "layout", "message"),
    [
        (
            "a\tb\n1\t2\n1\n",
            {},
            ":3: expected 2 values as in the first line, got 1; if values are in quotes, set",
        ),
        ("a,b\n1,2\n1,2,3\n", {}, ":3: expected 2 values as in the first line, got 3"),
        (
            'a,b\n1,"2\n3,4\n',
            {},
            ":2: expected values in closed quotes: unexpected end of data; correct the row",
        ),
        ('a,b\n1,2\n1,"2"x\n', {}, ":3: expected values in closed quotes: ',' expected after '\"'"),
        ("a\tc\n1\t2\n", {}, ":1: expected one column 'b' in the first line, got none; if this"),
        (
            "a\tb\tb\n1\t2\t3\n",
            {},
            ":1: expected one column 'b' in the first line, got it twice; if this line has no",
        ),
        ("a\tb\n1\t2\n", {"has_header": False}, ": expected the number of one of 2 columns, from 0, got 'a'"),
        (
            b"a\tb\n1\t2\n1\tcaf\xe9\n",
            {},
            ":3: expected UTF-8, got byte 0xe9 at position 5; convert the file",
        ),
        ("a\n1\n", {}, ":1: expected values between tabs or commas, got a line without them"),
        ("a\tb\n", {}, ": no rows; correct the path of the data set"),
        ("", {}, ": no rows; correct the path of the data set"),
        (b"\x1f\x8b\x08\x00", {}, ": expected a table, got a packed file; unpack it with gunzip"),
        ("a\tb\n1\t2\n".encode("utf-16"), {}, ": expected a table in UTF-8 or Parquet, got another format"),
    ],
)
def test_tables_that_do_not_fit_are_errors_at_the_start(
    tmp_path: Path, data: str | bytes, layout: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "a.tsv", data)
    with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")):
        TextRows([file], Layout(("a", "b"), **layout))


PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("packed", PACKERS)
def test_packed_tables_are_unpacked_once_and_have_the_same_rows(
    tmp_path: Path, packed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'a,b\n1,"x\ny"\n2,z\n'
    files = [write(tmp_path / f"{n}.csv{packed}", PACKERS[packed](text.encode())) for n in range(2)]
    index = tmp_path / "index"
    for number in range(2):
        data = pickle.loads(pickle.dumps(TextRows(files, Layout(("b",)), index)))
        assert values(data) == [["x\ny"], ["z"]] * 2
        assert (data[1].where, data[3].table) == (f"{files[0]}:4", files[1])
        shown = capsys.readouterr().err
        assert (shown.count("unpacking"), "indexing" in shown) == ((0, False) if number else (2, True))
    plain = TextRows([write(tmp_path / "a.csv", text)] * 2, Layout(("b",)))
    assert values(plain) == values(data)
    data = TextRows(files, Layout(("b",)), index)
    for file in index.glob("*.txt"):
        file.unlink()
    with pytest.raises(StorageError, match=r"\.txt: cannot read the file: No such file"):
        data[0]
    assert values(TextRows(files, Layout(("b",)), index)) == values(plain)


@pytest.mark.parametrize("packed", PACKERS)
def test_errors_of_packed_tables_name_the_packed_file(tmp_path: Path, packed: str) -> None:
    file = tmp_path / f"a.tsv{packed}"
    for data, message in (
        (PACKERS[packed](b"a\tb\n1\n"), ":2: expected 2 values as in the first line, got 1"),
        (
            PACKERS[packed](gzip.compress(b"a\tb\n1\t2\n")),
            ": expected a table, got a packed file; unpack it with",
        ),
        (PACKERS[packed](b"a\tb\n1\t2\n")[:-3], ": damaged "),
        (b"a\tb\n1\t2\n", ": damaged "),
        (b"", ": no rows"),
    ):
        with pytest.raises(DocumentError, match=re.escape(f"{file}{message}")):
            TextRows([write(file, data)], Layout(("a", "b")))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DocumentError, match=re.escape(f"{file}: expected a regular file")):
        TextRows([file], Layout(("a", "b")))


def test_a_row_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MOST_BYTES", 20)
    file = write(tmp_path / "a.tsv", 'a\tb\n1\t2\n"3\n4\n5\n6\n7\n8\n9\n10\n11\n12"\t2\n')
    with pytest.raises(
        DocumentError, match=r"a.tsv:3: expected at most 20 bytes in a row, got more; a quote that"
    ):
        TextRows([file], Layout(("a", "b"), quotes=True))
    assert len(TextRows([write(tmp_path / "b.tsv", "a\tb\n" + "1" * 17 + "\t2\n")], Layout(("a", "b")))) == 1


def test_a_pipe_is_refused_and_a_changed_file_is_a_storage_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="pipe: expected a regular file"):
        TextRows([tmp_path / "pipe"], Layout(BOTH))
    file = write(tmp_path / "a.tsv", "a\tb\n1\t2\n")
    data = pickle.loads(pickle.dumps(TextRows([file], Layout(("a", "b")))))
    assert values(data) == [["1", "2"]]
    write(file, "a\tb\n1\t22\n")
    with pytest.raises(StorageError, match=r"a.tsv changed while being read: .*; restore it or start anew"):
        data[0]
    file.unlink()
    with pytest.raises(StorageError, match=r"a.tsv: cannot read the file: No such file"):
        data[0]


@pytest.mark.parametrize("line", ["1\t2\t3\n", "1    2\n", "1\t\xff"])
def test_a_row_that_is_another_one_than_was_indexed_is_a_storage_error(tmp_path: Path, line: str) -> None:
    file = write(tmp_path / "a.tsv", "a\tb\n1234\t2\n")
    data = TextRows([file], Layout(("a", "b")))
    status = file.stat()
    write(file, b"a\tb\n" + line.encode("latin-1").ljust(7, b"5"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StorageError, match=r"a.tsv changed since it was indexed"):
        data[0]


@settings(max_examples=150)
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from([b"a", b"b", b",", b"\t", b"\n", b"\r", b'"', b"\xc3\xa9", b"\xff"]), max_size=30
    ).map(b"".join),
    st.booleans(),
    st.none() | st.booleans(),
)
def test_any_bytes_are_rows_or_an_error_with_the_name_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, has_header: bool, quotes: bool | None
) -> None:
    folder = tmp_path_factory.mktemp("any")
    file = write(folder / "a.tsv", data)
    columns = ("a",) if has_header else ("0",)
    try:
        rows = TextRows([file], Layout(columns, has_header, quotes), folder / "index")
    except DocumentError as error:
        assert not isinstance(error, StorageError)
        assert str(file) in str(error)
        return
    assert len(values(rows)) == len(rows)
