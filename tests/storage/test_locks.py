"""Locks of folders: exclusive, released with their process, and without files that are left over."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreamkit.errors import OutputError
from dreamkit.storage import locks
from dreamkit.storage.folders import atomic_folder, filled_folder, in_use_reason
from dreamkit.storage.locks import INSIDE, exclusive, taking_turns
from failing_writes import content

HOLD = """
import os, sys, time
from pathlib import Path
from dreamkit.storage.locks import exclusive, taking_turns
path, is_turn = Path(sys.argv[1]), sys.argv[2] == "turn"
with taking_turns(path, waiting=sys.exit) if is_turn else exclusive(path):
    if os.fork() == 0:  # as a worker that reads data
        print("locked", flush=True)
    time.sleep(60)
    os._exit(0)
"""


@pytest.mark.parametrize("form", ["new", "folder", "link", "dangling", "above/new"])
def test_a_folder_has_one_writer_under_all_its_names(tmp_path: Path, form: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    out = tmp_path / form
    before = content(tmp_path)
    for writer in (exclusive, atomic_folder, filled_folder):
        with exclusive(Path(os.path.relpath(out))):
            with (
                pytest.raises(
                    OutputError, match=f"^{out} is being written by another dreamkit command; wait"
                ),
                writer(out),
            ):
                raise AssertionError
            with exclusive(tmp_path / "other"):
                pass
        assert content(tmp_path) == before
    with exclusive(out):
        pass


@contextmanager
def holding_process(path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process with a lock and a forked process; kill both at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # also the forked one
        process.wait()
        process.stdout.close()


def test_a_lock_ends_with_its_process_though_a_forked_one_lives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with holding_process(out, "exclusive") as process:
        with pytest.raises(OutputError), exclusive(out):
            pass
        process.kill()
        process.wait()
        with atomic_folder(out):
            assert in_use_reason(out) is None
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def no_wait() -> None:
    raise TimeoutError


def test_a_turn_ends_with_its_process_though_a_forked_one_lives(tmp_path: Path) -> None:
    file = tmp_path / "new" / "table.lock"
    with holding_process(file, "turn") as process:
        with pytest.raises(TimeoutError), taking_turns(file, waiting=no_wait):
            raise AssertionError
        process.kill()
        process.wait()
        for _ in range(2):
            with taking_turns(file, waiting=no_wait):
                pass
    before = len(os.listdir("/proc/self/fd"))
    with taking_turns(file, waiting=no_wait):
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before and file.exists()


def test_a_turn_waits_for_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "table.lock"
    with holding_process(file, "turn") as process, taking_turns(file, waiting=process.kill):
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EBADF])
def test_a_turn_needs_no_wait_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with taking_turns(tmp_path / "table.lock", waiting=no_wait):
        pass


def test_a_turn_may_lock_the_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, open_file = tmp_path / "table.lock", os.open
    file.touch()

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    with taking_turns(file, waiting=no_wait):
        pass
    with pytest.raises(OutputError, match=r"cannot write .*/new\.lock: Permission denied .*make it writable"):
        taking_turns(tmp_path / "new.lock", waiting=no_wait).__enter__()


def test_the_lock_lies_inside_a_mount_point_and_a_folder_below_a_read_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: os.fspath(path) == str(out))
        with exclusive(out):
            assert [path.name for path in out.iterdir()] == [INSIDE] and in_use_reason(out) is None
        with (
            pytest.raises(OutputError, match="is a mount point and cannot be replaced; name a folder in it"),
            atomic_folder(out),
        ):
            raise AssertionError
    lock = locks._lock_file

    def read_only(path: Path, folder: Path) -> tuple[Path, int]:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return lock(path, folder)

    monkeypatch.setattr(locks, "_lock_file", read_only)
    with exclusive(out):
        assert [path.name for path in out.iterdir()] == [INSIDE]
        with pytest.raises(OutputError, match="another dreamkit command"), filled_folder(out):
            raise AssertionError
    assert not [*out.iterdir()]
    with (
        pytest.raises(
            OutputError, match=rf"cannot write {out}2: Permission denied \(.* free\); make it writable"
        ),
        exclusive(tmp_path / "out2"),
    ):
        raise AssertionError


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with (
        pytest.warns(
            UserWarning, match="cannot be locked .Function not implemented.; start no other command"
        ),
        exclusive(tmp_path / "out"),
    ):
        pass
    assert not [*tmp_path.iterdir()]


def test_folders_above_are_created_and_removed_again_if_nothing_is_written(tmp_path: Path) -> None:
    with exclusive(tmp_path / "a" / "b" / "c"):
        pass
    assert not [*tmp_path.iterdir()]
    with exclusive(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "notes.txt").touch()
    assert [*content(tmp_path)] == ["a", "a/notes.txt"]


def test_the_folder_of_a_process_killed_between_two_renames_is_restored(tmp_path: Path) -> None:
    out, replaced = tmp_path / "out", tmp_path / ".out.replaced"
    replaced.mkdir()
    (replaced / "weights").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(out):
        raise ZeroDivisionError
    assert [*content(tmp_path)] == ["out", "out/weights"]


def test_other_files_of_a_filled_folder_stay(tmp_path: Path) -> None:
    for name in ("page", "image-7", "notes.txt"):
        (tmp_path / name).write_text("old")
    with filled_folder(tmp_path, earlier=re.compile(r"page|image-\d+")) as new:
        (new / "page").write_text("new")
        assert (tmp_path / "page").read_text() == "old"
    assert content(tmp_path) == {"notes.txt": b"old", "page": b"new"}


def test_a_lock_file_with_content_is_the_users_and_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("mine")
    with exclusive(tmp_path / "out"):
        pass
    assert content(tmp_path) == {".out.lock": b"mine"}


def test_a_folder_that_another_program_fills_meanwhile_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="is not empty: another program wrote it meanwhile"),
        atomic_folder(tmp_path / "out") as partial,
    ):
        (partial / "weights").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
    assert content(tmp_path)["out/notes.txt"] == b"mine"


def test_the_root_folder_is_refused() -> None:
    with pytest.raises(OutputError, match="/ is a mount point"), atomic_folder(Path("/")):
        pass
