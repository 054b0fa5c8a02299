"""Reads of tars: one for a document, none at a second start, from few open files and in other processes."""

import os
import pickle
import random
import signal
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from dreamkit.data import range_reads
from dreamkit_data import spans, tar_samples
from tar_files import digit_metadata, write_img2dataset
from tar_sets import SHARDS, open_tars


def test_a_second_start_reads_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_img2dataset(tmp_path, SHARDS)
    first = open_tars(tmp_path)
    monkeypatch.setattr(tar_samples, "samples", None)
    monkeypatch.setattr(os, "pread", None)
    assert len(open_tars(tmp_path)) == len(first) == 30


def test_a_document_is_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    reads = []
    original = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: reads.append(args) or original(*args))
    for number in random.Random(0).sample(range(30), 30):
        assert data[number].text == digit_metadata(number)["caption"]
    assert len(reads) == 30


def test_files_stay_within_the_limit_of_open_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "MOST_OPEN", 3)
    write_img2dataset(tmp_path, [[digit_metadata(n)] for n in range(12)])
    data = open_tars(tmp_path)
    for number in [*range(12), *range(12)]:
        assert data[number].name.endswith(f"!{number:09}")
    targets = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert sum(target.startswith(str(tmp_path)) and target.endswith(".tar") for target in targets) == 3


def test_copies_in_other_processes_read_the_same(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert [copy[n] for n in range(30)] == [data[n] for n in range(30)]
    for number in (-1, 30):
        with pytest.raises(IndexError):
            data[number]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_a_thread_opens_a_file_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_img2dataset(tmp_path, SHARDS)
    data = open_tars(tmp_path)
    is_open, go_on = Event(), Event()
    original = range_reads.open_regular

    def slow(path: Path) -> Any:
        if path.name == "00000.tar":
            is_open.set()
            go_on.wait()
        return original(path)

    monkeypatch.setattr(range_reads, "open_regular", slow)
    thread = Thread(target=lambda: data[0])
    thread.start()
    is_open.wait()
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        code = 1
        try:
            code = int(data[29].text != digit_metadata(29)["caption"])
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    go_on.set()
    thread.join()
    assert status == 0
