"""Records by an index: the same as those of the file, read once, and never trusted more than the file."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image as PIL

from dreamkit.data import index_files, json_records, records as records_module
from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.json_records import ROW
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.data.records import Records
from dreamkit.errors import DocumentError, StorageError

PAIRS = [{"image": f"{number}.png", "caption": f"café {number}", "tools": number} for number in range(5)]


def accept(record: Any) -> None:
    """Accept every record."""


def write_lines(path: Path, records: list[Any], end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(record) + end for record in records).encode())
    return path


def all_records(records: Records) -> list[tuple[str, dict[str, Any]]]:
    return [records[index] for index in range(len(records))]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the place of each record that is parsed while a file is indexed."""
    places: list[str] = []
    parse = json_records.parse_record

    def counted(text: str, where: str, check: Any) -> dict[str, Any]:
        places.append(where)
        return parse(text, where, check)

    monkeypatch.setattr(json_records, "parse_record", counted)
    return places


values = st.text(max_size=6) | st.integers(-99, 99) | st.lists(st.text(max_size=3), max_size=2)
objects = st.dictionaries(st.text(max_size=4), values, max_size=3)
blanks = st.sampled_from(["", "", " ", "\t", "\u00a0"])


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.tuples(objects, blanks, st.integers(0, 2), st.booleans()), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n"]),
    has_mark=st.booleans(),
    is_packed=st.booleans(),
)
def test_the_records_of_lines_are_those_that_parsing_finds(
    tmp_path_factory: pytest.TempPathFactory, lines: Any, end: str, has_mark: bool, is_packed: bool
) -> None:
    folder, text, expected, number = tmp_path_factory.mktemp("lines"), "", [], 0
    path = folder / ("data.jsonl.gz" if is_packed else "data.jsonl")
    for record, blank, empty_lines, is_ascii in lines:
        text += (blank + end) * empty_lines
        number += empty_lines + 1
        json_blank = blank.replace("\u00a0", " ")  # no blank of JSON
        text += json_blank + json.dumps(record, ensure_ascii=is_ascii) + json_blank + end
        expected.append((f"{path}:{number}", record))
    data = codecs.BOM_UTF8 * has_mark + text.encode()
    path.write_bytes(gzip.compress(data) if is_packed else data)
    stripped = b"".join(
        line.strip() + b"\n" for line in data.split(b"\n") if line.decode("utf-8-sig").strip()
    )
    for _ in range(2):
        records = Records(path, accept, index=folder / "index")
        assert all_records(records) == expected
        assert records.sha256 == hashlib.sha256(stripped).hexdigest()  # that of resume points of any release


@settings(deadline=None, max_examples=60)
@given(
    items=st.lists(objects, min_size=1, max_size=5),
    indent=st.sampled_from([None, 1]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    has_mark=st.booleans(),
    is_ascii=st.booleans(),
)
def test_the_records_of_an_array_are_those_that_parsing_finds(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[Any],
    indent: int | None,
    end: str,
    has_mark: bool,
    is_ascii: bool,
) -> None:
    folder = tmp_path_factory.mktemp("array")
    text = json.dumps(items, indent=indent, ensure_ascii=is_ascii).replace("\n", end)
    path = folder / "data.json"
    path.write_bytes(codecs.BOM_UTF8 * has_mark + text.encode())
    for _ in range(2):
        records = Records(path, accept, index=folder / "index")
        assert [record for _, record in all_records(records)] == items
        at = [int(where.rpartition(":")[2]) for where, _ in all_records(records)]
        # With `indent`, each record begins on the line after the one before it ends.
        sizes = [json.dumps(item, indent=indent).count("\n") + 1 for item in items]
        assert records.sha256 == hashlib.sha256(text.replace(end, "\n").encode()).hexdigest()
        assert at == ([2 + sum(sizes[:n]) for n in range(len(items))] if indent else [1] * len(items))


READERS = [
    (Pairs, PairsConfig, {"image": "a.png", "caption": "one", "tools": 1}),
    (Interleaved, InterleavedConfig, {"text": "one <image> <video>", "images": ["a.png"], "tools": 1}),
    (
        Conversations,
        ConversationsConfig,
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>"},
                {"from": "gpt", "value": "one", "note": 1},
            ],
        },
    ),
]


@pytest.mark.parametrize(("reader", "config", "record"), READERS)
def test_each_reader_parses_nothing_at_its_second_start(
    tmp_path: Path, index: Path, parsed: list[str], reader: type, config: type, record: Any
) -> None:
    PIL.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = write_lines(tmp_path / "data.jsonl", [record] * 3)
    direct = reader(config(path))
    first = reader(config(path, index=index))
    assert len(parsed) == 6
    second = reader(config(path, index=index))
    assert len(parsed) == 6
    for data in (first, second):
        assert data.notes == direct.notes and data.notes
        assert data.fingerprint() == direct.fingerprint()
        assert [data[n].name for n in range(3)] == [f"{path}:{n}" for n in (1, 2, 3)]
    copy = pickle.loads(pickle.dumps(second))
    assert copy[2].name == f"{path}:3" and copy.notes == direct.notes


def test_a_second_start_reads_no_byte_of_the_file(tmp_path: Path, index: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    before, status = Records(path, accept, index=index), path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = Records(path, accept, index=index)
    assert len(after) == 5 and after.sha256 == before.sha256
    with pytest.raises(
        StorageError, match=r"data\.jsonl changed while being read: line 2 is another one now"
    ):
        after[1]


def test_the_array_of_an_index_is_mapped_at_the_first_record(tmp_path: Path, index: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    Records(path, accept, index=index)
    index_files.mapped.cache_clear()
    records = Records(path, accept, index=index)
    assert len(records) == 5 and index_files.mapped.cache_info().currsize == 0
    assert records[4][1] == PAIRS[4] and index_files.mapped.cache_info().currsize == 1


def test_notes_name_the_file_as_it_is_named_now(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    (note,) = Pairs(PairsConfig(path, index=index)).notes
    monkeypatch.chdir(tmp_path)
    (other,) = Pairs(PairsConfig(Path("data.jsonl"), index=index)).notes
    assert note == f"{path}: not read: unknown keys: 'tools' in 5 records"
    assert other == "data.jsonl: not read: unknown keys: 'tools' in 5 records"


def test_a_changed_file_is_read_again(tmp_path: Path, index: Path, parsed: list[str]) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    Records(path, accept, index=index)
    write_lines(path, [*PAIRS, {"more": 1}])
    assert len(Records(path, accept, index=index)) == 6 and len(parsed) == 11
    with path.open("a") as file:
        file.write('{"bad": }\n')
    with pytest.raises(DocumentError, match=r"data\.jsonl:7: invalid JSON"):
        Records(path, accept, index=index)


def test_a_changed_recipe_checks_again(tmp_path: Path, index: Path, parsed: list[str]) -> None:
    (tmp_path / "images").mkdir()
    path = write_lines(tmp_path / "data.jsonl", [{"image": "../a.png", "caption": "one", "title": "two"}])
    Pairs(PairsConfig(path, index=index))
    with pytest.raises(DocumentError, match=r"data\.jsonl:1: image: expected a path inside 'images'"):
        Pairs(PairsConfig(path, images=tmp_path / "images", index=index))
    assert len(parsed) == 2
    Pairs(PairsConfig(path, caption="title", index=index))
    assert len(parsed) == 3
    Pairs(PairsConfig(path, caption="title", direction="read", index=index))  # on which no check depends
    assert len(parsed) == 3


def test_a_folder_of_pairs_has_no_index(tmp_path: Path, index: Path) -> None:
    with pytest.raises(
        DocumentError, match="'index' is set, but a folder of images has none; remove 'index'"
    ):
        Pairs(PairsConfig(tmp_path, index=index))


def test_small_files_have_an_index_only_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: list[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DREAMKIT_CACHE_FOLDER", str(cache))
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    for _ in range(2):
        Records(path, accept)
    assert not cache.exists() and len(parsed) == 10
    monkeypatch.setattr(records_module, "SMALL", path.stat().st_size)
    for _ in range(2):
        Records(path, accept)
    assert len(parsed) == 15 and list((cache / "indexes").glob("*.npy"))
    assert not list(tmp_path.glob("*.npy"))


def test_a_process_opens_the_file_once(tmp_path: Path, index: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    records = Records(path, accept, index=index)
    opened: list[str] = []
    is_active = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if is_active and event == "open" and arguments[0] == str(path):
            opened.append(event)

    sys.addaudithook(audit)
    for _ in range(3):
        all_records(records)
    is_active = False
    assert len(opened) == 1


def test_a_failed_read_is_an_error_of_storage_and_the_next_one_opens_the_file_anew(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    records = Records(path, accept, index=index)
    descriptors = []

    def fail(descriptor: int, size: int, start: int) -> bytes:
        descriptors.append(descriptor)
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as during:
        during.setattr(os, "pread", fail)
        with pytest.raises(StorageError, match=r"data\.jsonl:1: cannot read the file: Input/output error"):
            records[0]
    assert len(descriptors) == 1 and records[0][1] == PAIRS[0]


def forge(index: Path, rows: np.ndarray) -> None:
    """Replace the rows of an index by others of the same size."""
    (array,) = index.glob("*.npy")
    head = array.read_bytes()[: -len(rows) * ROW.itemsize]
    array.write_bytes(head + rows.tobytes())
    index_files.mapped.cache_clear()


def refuse_bad(record: Any) -> str | None:
    return "bad" if "bad" in record else None


def test_an_index_is_not_trusted(tmp_path: Path, index: Path) -> None:
    text = '{"a": {"bad": 1}}\n{"b": "[1]"}\n'
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    rows = np.array(Records(path, refuse_bad, index=index)._rows[0])

    def read_forged(start: int, size: int, crc32: int) -> dict[str, Any]:
        forged = rows.copy()
        forged[0] = (start, 1, size, crc32)
        forge(index, forged)
        return Records(path, refuse_bad, index=index)[0][1]

    def place(part: str) -> tuple[int, int, int]:
        data = part.encode()
        return text.index(part), len(data), json_records.crc32(data)

    with pytest.raises(DocumentError, match=r"data\.jsonl:1: bad"):
        read_forged(*place('{"bad": 1}'))
    with pytest.raises(DocumentError, match=r"data\.jsonl:1: expected a record"):
        read_forged(*place("[1]"))
    with pytest.raises(DocumentError, match=r"data\.jsonl:1: invalid JSON"):
        read_forged(*place('{"b"'))
    for start, size in ((0, 2**32 - 1), (2**64 - 1, 9), (2**40, 9)):
        with pytest.raises(StorageError, match="line 1 is another one now"):
            read_forged(start, size, 1)


def test_an_index_of_other_columns_or_facts_is_refused(tmp_path: Path, index: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", PAIRS)
    Records(path, accept, index=index)
    (array,) = index.glob("*.npy")
    array.write_bytes(array.read_bytes().replace(b"crc32", b"crc31"))
    for file in index.glob("*.json"):
        file.write_text(file.read_text().replace('"notes"', '"notes"').replace('"sha256"', '"sha255"'))
    index_files.mapped.cache_clear()
    with pytest.raises(StorageError, match=r"data\.jsonl: its index has other columns"):
        Records(path, accept, index=index)[0]


def test_a_line_without_end_is_refused_before_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{}, {"a": "x" * 99}])
    monkeypatch.setattr(json_records, "LONGEST_LINE", 50)
    with pytest.raises(DocumentError, match=r"data\.jsonl:2: expected a line of at most 50 bytes, got more"):
        Records(path, accept)
