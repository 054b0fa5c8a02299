"""The store of indexes: what is computed, when, and what a damaged or hostile file becomes."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamkit import DocumentError, DreamkitError, OutputError, indexed
from dreamkit.data import index_files, index_processes
from dreamkit.data.unpacked_files import unpacked
from dreamkit.errors import StorageError
from dreamkit.storage.cache_folder import cache_folder
from failing_writes import failing_operation
from processes import wait_until

ROW = np.dtype([("offset", "<u8"), ("length", "<u4")])
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_index_store import indexed_words
indexed_words(sorted(Path(sys.argv[1]).glob('*.txt')), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def words(log: Path | None, path: Path) -> tuple[np.ndarray, dict[str, int]]:
    """Return offset and length of each word of a file, and their number; append the file's name to `log`."""
    if log is not None:
        with log.open("a") as file:
            file.write(f"{path.name}\n")
    data = path.read_bytes()
    if data == b"bad":
        raise DocumentError(f"{path}: bad")
    if data == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if data in (b"slow", b"endless"):
        time.sleep(3 if data == b"slow" else 999)
    rows, end = [], 0
    for word in data.split():
        start = data.index(word, end)
        end = start + len(word)
        rows.append((start, len(word)))
    return np.array(rows, ROW), {"words": len(rows)}


def indexed_words(
    shards: Sequence[Path], folder: Path | None, log: Path | None = None, **settings: Any
) -> Any:
    return indexed(
        shards,
        partial(words, log),
        kind="words",
        version=settings.pop("version", 1),
        settings=settings,
        folder=folder,
    )


def write_shards(folder: Path, number: int = 5) -> list[Path]:
    folder.mkdir(exist_ok=True)
    shards = [folder / f"{n}.txt" for n in range(number)]
    for n, shard in enumerate(shards):
        shard.write_text("one two three four"[: 4 * n])
    return shards


def logged(log: Path) -> list[str]:
    """Return the names of the files that were read, and empty the log."""
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.mark.parametrize("processes", [1, 3])
def test_an_index_is_what_build_returns_and_is_computed_once(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: processes)
    shards, folder = write_shards(tmp_path / "data"), tmp_path / "index"
    for reads in ([shard.name for shard in shards], [], []):
        indexes = indexed_words(shards, folder, log)
        assert logged(log) == reads
        assert len(indexes) == 5 and indexes.rows.tolist() == [0, 1, 2, 3, 4]
        for shard, rows, facts in zip(shards, indexes, indexes.facts, strict=True):
            expected, expected_facts = words(None, shard)
            assert rows.dtype == ROW and np.array_equal(rows, expected) and facts == expected_facts
            assert not rows.flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "index"]
    assert {path.suffix for path in folder.iterdir()} == {".npy", ".json", ".lock"}


def test_another_list_of_shards_computes_only_the_new_ones(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data"), tmp_path / "index"
    indexed_words(shards[1:4], folder, log)
    logged(log)
    assert indexed_words(shards, folder, log).rows.tolist() == [0, 1, 2, 3, 4]
    assert logged(log) == ["0.txt", "4.txt"]


def test_a_shard_of_another_size_or_time_is_computed_again_and_its_old_array_removed(
    tmp_path: Path, log: Path
) -> None:
    shards, folder = write_shards(tmp_path / "data"), tmp_path / "index"
    indexed_words(shards, folder, log)
    logged(log)
    shards[1].write_text("one more")
    status = shards[2].stat()
    os.utime(shards[2], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert indexed_words(shards, folder, log).rows.tolist() == [0, 2, 2, 3, 4]
    assert logged(log) == ["1.txt", "2.txt"]
    assert len(list(folder.glob("*.npy"))) == 5


def test_a_shard_is_computed_again_after_a_change_of_what_lies_beside_it(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 2), tmp_path / "index"
    for shard in shards:
        shard.with_suffix("").mkdir()

    def read() -> list[str]:
        indexed(
            shards,
            partial(words, log),
            kind="words",
            version=1,
            settings={},
            folder=folder,
            beside=lambda shard: shard.with_suffix(""),
        )
        return logged(log)

    assert [read(), read()] == [["0.txt", "1.txt"], []]
    os.utime(tmp_path / "data" / "1", ns=(0, 1))
    assert [read(), read()] == [["1.txt"], []]
    assert len(list(folder.glob("*.npy"))) == 2
    (tmp_path / "data" / "1").rmdir()
    with pytest.raises(DocumentError, match="1: no such file"):
        read()


def test_other_settings_and_versions_have_indexes_of_their_own(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 1), tmp_path / "index"
    for _ in range(2):
        first = indexed_words(shards, folder, log, least=1)
        indexed_words(shards, folder, log, least=2)
        indexed_words(shards, folder, log, least=2, version=2)
        assert len(first[0]) == 0
    assert logged(log) == ["0.txt"] * 3


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _as_pickle(path: Path) -> None:
    size = path.stat().st_size
    np.save(path, np.array([{}], object), allow_pickle=True)
    os.truncate(path, size)


def _with_values(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        if "records" in content:
            content["records"][3] = [
                values.get(key, old) for key, old in zip(FIELDS, content["records"][3], strict=True)
            ]
        else:
            content |= values
        path.write_text(json.dumps(content))

    return change


PATHS = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "helpers")]
FIELDS = index_files.IndexRecord._fields
DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
    "another file": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "a folder": lambda path: (path.unlink(), path.mkdir())[0],
}
TEXT_DAMAGES = {
    "deep": lambda path: path.write_text("[" * 100_000),
    "a negative count": _with_values(rows=-1),
    "a count of another type": _with_values(rows="3"),
    "a count without end": lambda path: path.write_text(path.read_text().replace("3", "9" * 5000)),
    "facts that are a list": _with_values(facts=[]),
    "no list": _with_values(size=None),
}


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *(("array", damage) for damage in DAMAGES),
        *((part, damage) for part in ("manifest and table", "table") for damage in DAMAGES | TEXT_DAMAGES),
    ],
)
def test_a_damaged_index_is_computed_again(tmp_path: Path, log: Path, part: str, damage: str) -> None:
    shards, folder = write_shards(tmp_path / "data"), tmp_path / "index"
    indexed_words(shards, folder, log)
    logged(log)
    files = index_files.IndexFolder(folder, "words", 1, "{}")
    path, paths = str(shards[3]), [*map(str, shards)]
    record = files.read(path)
    assert record is not None
    broken = {
        "array": [files.array(path, record.status)],
        "manifest and table": [files.manifest(path), files.table(paths)],
        "table": [files.table(paths)],
    }[part]
    for file in broken:
        (DAMAGES | TEXT_DAMAGES)[damage](file)
    if damage == "a folder":
        with pytest.raises(OutputError):
            indexed_words(shards, folder, log)
        return
    index_files.mapped.cache_clear()
    indexes = indexed_words(shards, folder, log)
    assert [len(rows) for rows in indexes] == [0, 1, 2, 3, 4]
    assert logged(log) == ([] if part == "table" else ["3.txt"])
    assert indexed_words(shards, folder, log).rows.tolist() == [0, 1, 2, 3, 4] and logged(log) == []


@pytest.mark.parametrize(
    "damage", [_as_pickle, lambda path: path.write_bytes(b"\x93NUMPY" + b"x" * (path.stat().st_size - 6))]
)
def test_an_array_that_is_damaged_inside_is_refused_when_it_is_read_and_computed_at_the_next_start(
    tmp_path: Path, log: Path, damage: Callable[[Path], None]
) -> None:
    shards, folder = write_shards(tmp_path / "data")[3:4], tmp_path / "index"
    indexed_words(shards, folder, log)
    (array,) = folder.glob("*.npy")
    damage(array)
    index_files.mapped.cache_clear()
    logged(log)
    with pytest.raises(StorageError, match=r"cannot read this index: .*; start again to compute it anew"):
        indexed_words(shards, folder, log)[0]
    assert logged(log) == []
    assert len(indexed_words(shards, folder, log)[0]) == 3
    assert logged(log) == ["3.txt"]


@pytest.mark.parametrize(
    ("content", "error"),
    [("bad", r"5\.txt: bad"), ("killed", "a process that indexes data ended by SIGKILL")],
)
def test_the_first_error_of_a_shard_is_raised_and_the_finished_ones_stay(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, content: str, error: str
) -> None:
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: 2)
    shards, folder = write_shards(tmp_path / "data", 6), tmp_path / "index"
    shards[5].write_text(content)
    with pytest.raises(DreamkitError, match=error):
        indexed_words(shards, folder, log)
    logged(log)
    shards[5].write_text("good")
    assert indexed_words(shards, folder, log).rows.tolist() == [0, 1, 2, 3, 4, 1]
    again = logged(log)
    assert "5.txt" in again and len(again) <= 2  # the other process may have been at a shard


def test_a_kill_loses_only_the_shards_in_progress(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 8), tmp_path / "index"
    shards[6].write_text("slow")
    script = SCRIPT.format(paths=PATHS)
    process = subprocess.Popen(
        [sys.executable, "-c", script, shards[0].parent, folder, log], stderr=subprocess.DEVNULL
    )
    wait_until(lambda: log.exists() and "6.txt" in log.read_text(), process)
    process.kill()
    process.wait()
    complete = {file.stem.split("-")[0] for file in folder.glob("*.npy")}
    assert len(complete) >= 5
    before = logged(log)
    shards[6].write_text("fast")  # the processes of the killed one end at their next shard
    assert indexed_words(shards, folder, log).rows[:7].tolist() == [0, 1, 2, 3, 4, 4, 1]
    assert len(logged(log)) <= 8 - len(complete) and len(before) <= 8


def test_an_interrupt_ends_all_processes_and_leaves_no_file_in_progress(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 4), tmp_path / "index"
    for shard in shards[2:]:
        shard.write_text("endless")
    script = SCRIPT.format(paths=PATHS)
    process = subprocess.Popen(
        [sys.executable, "-c", script, shards[0].parent, folder, log],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: log.exists() and len(log.read_text().split()) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list(folder.glob(".*.partial"))


def test_after_a_failed_write_nothing_is_half_written(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: 1)
    shards = write_shards(tmp_path / "data", 2)
    for number in range(1, 99):
        folder = tmp_path / f"index{number}"
        with failing_operation(folder, number, monkeypatch) as failing:
            if not failing_is_raised(shards, folder):
                break
        assert failing.failed and not list(folder.glob(".*.partial"))
        assert indexed_words(shards, folder).rows.tolist() == [0, 1]
    assert number > 10  # folder and lock; then open, sync and rename of five files


def failing_is_raised(shards: Sequence[Path], folder: Path) -> bool:
    """Return True if the index cannot be written, by an error that names its folder."""
    try:
        indexed_words(shards, folder)
    except OutputError as error:
        assert str(folder) in str(error)
        return True
    return False


def test_the_error_of_a_write_names_the_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "none" / "x.npy"
    with (
        pytest.raises(OutputError, match=rf"^cannot write {path}: No such file"),
        index_files.atomic_file(path),
    ):
        raise AssertionError


def test_files_of_killed_processes_are_removed_after_a_day(tmp_path: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 1), tmp_path / "index"
    folder.mkdir()
    old, new = folder / ".a.npy.1.partial", folder / ".a.npy.2.partial"
    for file in (old, new):
        file.write_text("")
    os.utime(old, (1, 1))
    indexed_words(shards, folder)
    assert new.exists() and not old.exists()


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DocumentError, match=r"none\.txt: no such file or folder; correct the path of the data set"
    ):
        indexed_words([tmp_path / "none.txt"], tmp_path)


def test_a_shard_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path / "data", 1)

    def build(path: Path) -> np.ndarray:
        path.write_text("changed")
        return np.zeros(1, ROW)

    with pytest.raises(DocumentError, match="changed while being read"):
        indexed([shard], build, kind="words", version=1, settings={}, folder=tmp_path / "index")
    assert not list((tmp_path / "index").glob("*.npy"))


def test_processes_that_start_at_once_read_each_shard_once(tmp_path: Path, log: Path) -> None:
    shards, folder = write_shards(tmp_path / "data", 5), tmp_path / "index"
    script = SCRIPT.format(paths=PATHS)
    command = [sys.executable, "-c", script, shards[0].parent, folder, log]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert logged(log) == [shard.name for shard in shards]
    assert indexed_words(shards, folder, log).rows.tolist() == [0, 1, 2, 3, 4] and logged(log) == []


def test_few_arrays_are_mapped_at_once_and_none_at_the_start(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", index_files.MOST_OPEN + 9)
    index_files.mapped.cache_clear()
    indexes = indexed_words(shards, tmp_path / "index")
    assert index_files.mapped.cache_info().currsize == 0
    before = len(os.listdir("/proc/self/fd"))
    total = sum(len(rows) for rows in indexes)
    assert total == indexes.rows.sum()
    assert len(os.listdir("/proc/self/fd")) <= before + index_files.MOST_OPEN
    assert np.array_equal(pickle.loads(pickle.dumps(indexes))[-1], indexes[-1])
    assert len(pickle.dumps(indexes)) < 200 * len(shards)


def test_a_folder_that_cannot_be_written_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path / "data", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMKIT_CACHE_FOLDER", str(tmp_path / "file"))
    packed = tmp_path / "records.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    for write in (lambda: indexed_words(shards, None), lambda: unpacked(packed, None)):
        with pytest.raises(
            OutputError, match=r"cannot write .*file.*set .*DREAMKIT_CACHE_FOLDER or the key 'index'"
        ) as error:
            write()
        assert str(error.value).count("DREAMKIT_CACHE_FOLDER") == 1
    indexed_words(shards, tmp_path / "index")
    os.chmod(tmp_path / "index", 0o500)
    assert indexed_words(shards, tmp_path / "index").rows.tolist() == [0]  # nothing to write


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DREAMKIT_CACHE_FOLDER": "/own"}, "/own"),
        ({"DREAMKIT_CACHE_FOLDER": "~/own"}, "/home/x/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/dreamkit"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/x/.cache/dreamkit"),
        ({}, "/home/x/.cache/dreamkit"),
    ],
)
def test_the_cache_folder_follows_the_platform(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DREAMKIT_CACHE_FOLDER", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/x"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_a_process_that_reads_data_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_processes.multiprocessing.current_process(), "_config", {"daemon": True})
    assert index_processes.usable_processes() == 1


def test_arrays_of_any_length_share_the_parsed_header_of_their_rows(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 20)  # of 0 to 19 rows
    indexes = indexed_words(shards, tmp_path / "index")
    index_files.mapped.cache_clear()
    before = index_files._dtype.cache_info().misses
    for shard, rows in zip(shards, indexes, strict=True):
        assert np.array_equal(rows, words(None, shard)[0])
    assert index_files._dtype.cache_info().misses <= before + 1
