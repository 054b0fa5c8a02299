"""An error of a process that reads data is the same as without processes, and is never lost."""

import errno
import os
import resource
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import caches
import layouts
from dreamkit.data import workers as processes
from dreamkit.data.workers import WorkerStart, in_shared_memory, original_errors
from dreamkit.errors import CacheError, DocumentError, DreamkitError, TrainingError
from runs import run


class Failing(Dataset[int]):
    """A data set whose items raise an error that another one caused."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        try:
            raise DocumentError("the cause")
        except DocumentError as cause:
            raise self.error from cause


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error",
    [DocumentError("c.jsonl:1: expected x, got y"), CacheError("one\n  two\nTraceback"), ValueError("z")],
)
def test_a_user_error_keeps_its_message_in_a_worker(error: Exception, workers: int) -> None:
    with pytest.raises(type(error)) as caught, original_errors():
        list(DataLoader(Failing(error), num_workers=workers))
    if isinstance(error, DreamkitError):
        assert type(caught.value) is type(error) and str(caught.value) == str(error)
    else:
        assert "Traceback" in str(caught.value) or not workers  # an error of code keeps its place


class Tensors(Dataset[Tensor]):
    """A data set of two large computed tensors and an empty one: ones if they are in shared memory, else zeros."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        tensor = in_shared_memory(torch.zeros(0 if index == 2 else 100_000, requires_grad=True) * 1)
        return tensor.fill_(tensor.is_shared())


def limit_shared_memory(number: int) -> None:
    """Refuse every new file of shared memory, in this process alone."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_process_that_reads_data_moves_its_tensors_into_shared_memory() -> None:
    for workers in (0, 1):
        tensors = list(DataLoader(Tensors(), batch_size=None, num_workers=workers))
        assert [len(tensor) for tensor in tensors] == [100_000, 100_000, 0]
        assert all((tensor == workers).all() for tensor in tensors)


TOO_SMALL = (
    r"^a process that reads data cannot put a batch into shared memory: .*; enlarge it \(docker run --shm-size=8g\) or "
    r"set train\.workers=0"
)


def read_tensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with original_errors():
        list(DataLoader(Tensors(), None, num_workers=1, worker_init_fn=limit_shared_memory))


def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerStart, "__call__", lambda self, number: limit_shared_memory(number))
    run(folder / "out", layouts.recipe(workers=1))


def write_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerStart, "__call__", lambda self, number: limit_shared_memory(number))
    caches.write(folder / "cache", caches.recipe(train={"workers": 1}))


@pytest.mark.parametrize("read", [read_tensors, train, write_cache])
def test_too_little_shared_memory_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    with pytest.raises(TrainingError, match=TOO_SMALL) as caught:
        read(tmp_path, monkeypatch)
    assert not processes.SHARED_MEMORY.is_dir() or f"({processes.SHARED_MEMORY} has" in str(caught.value)


class ManyTensors(Dataset[list[Tensor]]):
    """A data set of 20 tensors in an item."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[Tensor]:
        return [in_shared_memory(torch.full((2,), index)) for _ in range(20)]


def limit_descriptors(free: int) -> tuple[int, int]:
    """Let this process open `free` more files; return the earlier limits."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(map(int, os.listdir(processes.DESCRIPTORS)))
    *_, limit = islice((number for number in count() if number not in used), free + 1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    return before


TOO_MANY = (
    r"^too many open files \(the limit is \d+\); raise the limit \(ulimit -n 65536\) or set train\.workers=0$"
)


@pytest.mark.skipif(not processes.DESCRIPTORS.is_dir(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("free", [0, 10, 22, 30, 45, 60, 200])
def test_too_many_open_files_are_an_error_and_never_a_wait(free: int) -> None:
    def start(number: int) -> None:
        limit_descriptors(free)

    loader = DataLoader(ManyTensors(), None, num_workers=1, worker_init_fn=start, timeout=60)
    if free == 200:
        assert [int(tensors[0][0]) for tensors in loader] == [0, 1, 2, 3]
        return
    with pytest.raises(TrainingError, match=TOO_MANY), original_errors():
        list(loader)


@pytest.mark.skipif(not processes.DESCRIPTORS.is_dir(), reason="needs Linux's list of open files")
@pytest.mark.parametrize("free", [4, 8, 17])
def test_too_many_open_files_in_the_main_process_are_an_error(free: int) -> None:
    before = limit_descriptors(free)

    def start(number: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    loader = DataLoader(ManyTensors(), None, num_workers=1, worker_init_fn=start, timeout=60)
    try:
        with pytest.raises(TrainingError, match=TOO_MANY), original_errors():
            list(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_open_files_of_a_document_are_an_error(workers: int) -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.png")
    with pytest.raises(TrainingError, match=TOO_MANY), original_errors():
        list(DataLoader(Failing(error), num_workers=workers))


@pytest.mark.parametrize("free", [0, 10**6])
def test_a_semaphore_without_shared_memory_is_an_error(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(processes, "_free_bytes", lambda: free)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises((TrainingError, OSError)) as caught, original_errors():
        raise full
    assert (caught.value is full) == bool(free)


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(TrainingError, match="was killed"), original_errors():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
