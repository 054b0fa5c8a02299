"""Packed files of records: the same records, unpacked once; cut, damaged and hostile files are refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, strategies as st
from PIL import Image as PIL

from dreamkit.data import unpacked_files, zstandard_reader
from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.data.records import Records
from dreamkit.data.zstandard_reader import ZstandardReader
from dreamkit.errors import DocumentError, DreamkitError, OutputError

PAIRS = [{"image": f"{number}.png", "caption": f"café {number}", "tools": number} for number in range(5)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0note"  # a frame without text, as pzstd writes


def accept(record: Any) -> None:
    """Accept every record."""


def refuse_bad(record: Any) -> str | None:
    return "bad" if "bad" in record else None


def all_records(records: Records) -> list[tuple[str, dict[str, Any]]]:
    return [records[index] for index in range(len(records))]


def lines(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write(path: Path, text: bytes) -> Path:
    path.write_bytes(PACKERS[path.suffix](text))
    return path


def with_window(text: bytes, log: int) -> bytes:
    """Return a frame whose text may refer to 2**log bytes before."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(text) + packer.flush()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture(params=PACKERS)
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / f"data.jsonl{request.param}"


def test_a_file_is_unpacked_once_beside_its_index(
    path: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(path, lines(PAIRS))
    for number in range(2):
        records = Records(path, accept, index=index)
        assert all_records(records) == [(f"{path}:{n}", PAIRS[n - 1]) for n in range(1, 6)]
        shown = capsys.readouterr().err
        assert ("unpacking" in shown) == ("indexing" in shown) == (number == 0)
    (text,) = index.glob("*.txt")
    text.unlink()
    assert Records(path, accept, index=index)[4][1] == PAIRS[4]
    assert "indexing" not in capsys.readouterr().err
    write(path, lines(PAIRS[1:]))
    assert Records(path, accept, index=index)[0][1] == PAIRS[1]
    (text,) = index.glob("*.txt")
    assert len(text.read_text().splitlines()) == 4
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, "index"]


def test_all_readers_of_records_read_packed_files(path: Path) -> None:
    PIL.new("RGB", (4, 4), "red").save(path.parent / "a.png")
    turns = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]
    for read, record in (
        (lambda: Pairs(PairsConfig(path)), {"image": "a.png", "caption": "red"}),
        (lambda: Interleaved(InterleavedConfig(path)), {"text": "red <image>", "images": ["a.png"]}),
        (lambda: Conversations(ConversationsConfig(path)), {"image": "a.png", "conversations": turns}),
    ):
        write(path, lines([record]))
        data = read()
        assert len(data) == 1 and data[0].name == f"{path}:1"


def test_the_space_is_printed_before_a_file_is_unpacked(
    path: Path, index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacked_files, "_BLOCK", 2**16)
    monkeypatch.setattr(unpacked_files, "_SAMPLE", 4)
    random = np.random.default_rng(0)
    text = lines([{"a": random.integers(0, 9, 99).tolist()} for _ in range(2000)])
    Records(write(path, text), accept, index=index)
    size = len(text) / 1000
    shown = capsys.readouterr().err.split("about ")[1].split(" kB unpacked")[0]
    assert 0.5 * size < float(shown) < 2 * size


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[:-9],
    "cut in its first bytes": lambda data: data[:5],
    "cut in a later part": lambda data: data + data[:20],
    "a changed byte": lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:],
    "another checksum": lambda data: data[:-8] + b"1234" + data[-4:],
    "something after it": lambda data: data + b"more",
    "another format": lambda _: b'{"a": 1}\n',
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_leaves_nothing(path: Path, index: Path, damage: str) -> None:
    write(path, lines(PAIRS))
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(
        DocumentError,
        match=rf"{path.name}: (damaged (gzip|Zstandard) file: .+; write or download|no records)",
    ):
        Records(path, accept, index=index)
    assert not [file for file in index.iterdir() if file.suffix != ".lock" and file.stat().st_size]


@pytest.mark.parametrize("sample", [1, 16])
def test_a_bomb_ends_before_the_disk_is_full(
    path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    """It may show at its start, or after a start that grows little."""
    monkeypatch.setattr(unpacked_files, "_SAMPLE", sample)
    pack = PACKERS[path.suffix]
    path.write_bytes((pack(os.urandom(2**20 + 1)) if sample == 1 else b"") + pack(b" " * 2**25))
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**23))
    written = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (written.append(number), fsync(number))[1])
    with pytest.raises(
        OutputError,
        match=r"unpacked, it needs (about|more than) .* has 8\.4 MB free; .* with (gunzip|unzstd)",
    ):
        Records(path, accept, index=index)
    assert not written and [file.suffix for file in index.iterdir()] == [".lock"]


def test_a_packed_array_is_read_too(path: Path, index: Path) -> None:
    write(path, json.dumps(PAIRS, indent=1).encode())
    assert [record for _, record in all_records(Records(path, accept, index=index))] == PAIRS


def test_errors_of_a_packed_file_name_it_and_its_line(path: Path, index: Path) -> None:
    write(path, lines([{}, {"bad": 1}]))
    with pytest.raises(DreamkitError, match=rf"{path.name}:2: bad"):
        Records(path, refuse_bad, index=index)


@given(
    st.lists(st.binary(max_size=50) | st.integers(0, 3).map(lambda n: b"abc" * 10**n), max_size=5),
    st.sampled_from([b"", SKIPPED]),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_the_frames_of_a_zstandard_file_are_one_text(
    texts: list[bytes], between: bytes, step: int, size: int
) -> None:
    packed = between.join(map(PACKERS[".zst"], texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstandard_reader, "_STEP", step)
        reader = io.BufferedReader(ZstandardReader(io.BytesIO(packed)), size)
        assert b"".join(iter(lambda: reader.read(size), b"")) == b"".join(texts)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=3), st.data())
def test_a_cut_zstandard_file_is_an_error_unless_its_frames_are_whole(
    texts: list[bytes], data: st.DataObject
) -> None:
    frames = [PACKERS[".zst"](text) for text in texts]
    packed = b"".join(frames)
    size = data.draw(st.integers(0, len(packed)))
    ends = [sum(map(len, frames[:number])) for number in range(len(frames) + 1)]
    reader = io.BufferedReader(ZstandardReader(io.BytesIO(packed[:size])))
    if size in ends:
        assert reader.read() == b"".join(texts[: ends.index(size)])
    else:
        with pytest.raises(EOFError, match="ends inside a frame"):
            reader.read()


def test_a_window_that_needs_more_memory_than_zstd_takes_is_refused(tmp_path: Path, index: Path) -> None:
    path = tmp_path / "data.jsonl.zst"
    path.write_bytes(with_window(lines(PAIRS), 27))
    assert len(Records(path, accept, index=index)) == 5
    path.write_bytes(with_window(b"", 20) + with_window(lines(PAIRS), 28))
    with pytest.raises(
        DocumentError,
        match=r"zst: damaged Zstandard file: expected a window of at most 134\.2 MB, got 268\.4 MB; .*--long=31",
    ):
        Records(path, accept, index=index)


def test_a_zstandard_bomb_takes_little_memory_at_once() -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    packed = b"".join(packer.compress(bytes(2**24)) for _ in range(16)) + packer.flush()
    reader = ZstandardReader(io.BytesIO(packed))
    largest = size = 0
    while read := reader.readinto(bytearray(2**20)):
        largest, size = max(largest, read + len(reader._text)), size + read
    assert size == 2**28 and largest <= 2**25


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.delitem(sys.modules, "dreamkit.data.zstandard_reader")
    path = write(tmp_path / "data.jsonl.zst", lines(PAIRS))
    with pytest.raises(
        DocumentError, match=r"zst: to unpack it needs .* zstandard; run pip install dreamkit-data"
    ):
        Records(path, accept)
