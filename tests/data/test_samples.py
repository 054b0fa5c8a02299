"""Bad and long documents of a run: skipped for substitutes of the same set, cut, or an end of the run."""

from __future__ import annotations

import errno
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies as st
from PIL.PngImagePlugin import PngImageFile
from torch.utils.data import DataLoader

import tiny
from dreamkit.data import document_reads
from dreamkit.data.dataset import Dataset
from dreamkit.data.document_reads import DELAYS, read_error
from dreamkit.data.mixture import Mixture
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.data.samples import MAX_ATTEMPTS, Policy, Samples
from dreamkit.data.sequence import Sequence
from dreamkit.data.skipped import Skipped, SkippedSummary, kind_of_problem, split_place, summarize
from dreamkit.data.workers import original_errors
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DocumentError, StorageError, TrainingError, describe_error

SEQUENCER = tiny.model().sequencer(64)


class Words(Dataset):
    """Documents `set.n`, of which some are bad; `failures` are errors of the next reads of a document."""

    def __init__(
        self, name: str, size: int, bad: Any = (), failures: Mapping[int, list[Exception]] = {}
    ) -> None:
        self.name = name
        self.size = size
        self.bad = frozenset(bad)
        self.failures = failures
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Document:
        self.reads.append(index)
        if self.failures.get(index):
            raise self.failures[index].pop(0)
        if index in self.bad:
            raise DocumentError(f"/data/{self.name}.tar!{index}: expected a word, got 'x{index}'")
        return Document((Text(f"{self.name} {index}"),), name=f"{self.name}.{index}")


def samples(sets: list[Dataset], length: int = 40, seed: int = 0, **policy: Any) -> Samples:
    mixture = Mixture(sets, [1.0] * len(sets), seed, length=length)
    return Samples(mixture, SEQUENCER, Policy(**policy))


@given(data=st.data(), size=st.integers(1, 12), seed=st.integers(0, 3))
def test_bad_documents_are_replaced_by_good_ones_of_the_same_set(
    data: st.DataObject, size: int, seed: int
) -> None:
    bad = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    sets: list[Dataset] = [Words("a", size, bad), Words("b", 5)]
    whole: list[Dataset] = [Words("a", size), Words("b", 5)]
    run, expected = samples(sets, seed=seed), samples(whole, seed=seed)
    for place in range(len(run)):
        sequence, usual = run[place], expected[place]
        name, index = usual.name.split(".")
        tried = [document.index for document in sequence.skipped]
        assert sequence.place == place and len({*tried}) == len(tried)
        assert all(document.data == (name == "b") for document in sequence.skipped)
        if name == "a" and int(index) in bad:
            assert tried[0] == int(index) and bad.issuperset(tried)
            assert sequence.name in {f"a.{n}" for n in range(size) if n not in bad}
        else:
            assert (sequence.ids, tried) == (usual.ids, [])


@given(size=st.integers(1, 200), place=st.integers(0, 10**12), seed=st.integers(0, 2**32 - 1))
def test_the_first_attempts_are_a_permutation_of_the_set(size: int, place: int, seed: int) -> None:
    mixture = type(
        "", (), {"seed": seed, "data_sets": [range(size)], "place": lambda self, place: (0, place % size)}
    )
    run = Samples(mixture(), SEQUENCER)
    positions = [run.position(place, attempt) for attempt in range(size)]
    assert positions[0] == (0, place % size)
    assert sorted(index for _, index in positions) == list(range(size))


def test_processes_that_read_data_skip_the_same_documents() -> None:
    def read(workers: int) -> list[Sequence]:
        run = samples([Words("a", 30, range(0, 30, 3)), Words("b", 7, [1, 2])])
        loader: Any = DataLoader(run, batch_size=None, num_workers=workers)
        return [*loader]

    alone = read(0)
    assert sum(len(sequence.skipped) for sequence in alone) > 10
    assert read(2) == alone


def test_a_skipped_document_is_recorded_with_its_place() -> None:
    run = samples([Words("a", 4, [0, 1, 2])])
    sequence = next(sequence for sequence in map(run.__getitem__, range(40)) if sequence.skipped)
    first = sequence.skipped[0]
    assert first == Skipped(
        place=sequence.place or 0,
        data=0,
        index=first.index,
        shard="/data/a.tar",
        member=str(first.index),
        reason=f"expected a word, got 'x{first.index}'",
    )
    assert pickle.loads(pickle.dumps(sequence.skipped)) == sequence.skipped


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("/a b/c.jsonl:12: no such image: /x/y.png", ("/a b/c.jsonl", "12", "no such image: /x/y.png")),
        ("/a/000.tar!000123: empty caption", ("/a/000.tar", "000123", "empty caption")),
        ("s3://bucket/a.tar!b/c.jpg: cut", ("s3://bucket/a.tar", "b/c.jpg", "cut")),
        ("/a/wow!/000.TAR.gz!b!: cut", ("/a/wow!/000.TAR.gz", "b!", "cut")),
        ("/a/b.json!17: cut", ("/a/b.json", "17", "cut")),
        ("/d/wow!.png: cut", ("/d", "wow!.png", "cut")),
        ("/d/wow! so.d/v1.0!.png: cut", ("/d/wow! so.d", "v1.0!.png", "cut")),
        ("/a b/c.png: cannot read it: cut", ("/a b", "c.png", "cannot read it: cut")),
        ("data/c.png: cut", ("data", "c.png", "cut")),
        ("expected 3 images, got 2: a, b", (None, None, "expected 3 images, got 2: a, b")),
        ("images: cut", (None, None, "images: cut")),
    ],
)
def test_the_place_of_a_document_is_read_from_its_error(
    message: str, expected: tuple[str | None, ...]
) -> None:
    assert split_place(message) == expected


def test_a_summary_names_what_most_documents_have_in_common() -> None:
    documents = [
        Skipped(
            n,
            int(n % 5 == 0),
            n,
            f"/d/{n % 3 // 2}.tar",
            str(n),
            f"cannot read the image /d/{n}.png: cut at {n}",
        )
        for n in range(9)
    ]
    assert summarize(documents) == (
        "7 of 9 in data.0; 6 of 9 in /d/0.tar; 9 of 9: cannot read the image ... cut at ..."
    )
    assert len(kind_of_problem("x" * 1000)) == 120


def test_a_set_without_a_good_document_is_an_error_after_some_attempts() -> None:
    for size in (3, 1000):
        dataset = Words("a", size, range(size))
        with pytest.raises(DocumentError) as caught:
            samples([dataset])[0]
        tried = min(size, MAX_ATTEMPTS)
        assert f"data.0: none of {tried} documents for one place can be used: " in str(caught.value)
        assert f"{tried} of {tried} in /data/a.tar" in str(caught.value)
        assert len(dataset.reads) == len({*dataset.reads}) == tried


def test_stop_raises_at_the_first_bad_document_with_its_place_and_the_remedy() -> None:
    run = samples([Words("a", 4, [0, 1, 2])], on_error="stop")
    with pytest.raises(
        DocumentError, match=r"a\.tar!\d: expected a word, got 'x\d'; set train\.on_error=skip to skip"
    ):
        for place in range(40):
            run[place]


class WordsInThreads(Words):
    """Documents that several threads may read."""

    is_thread_safe = True


def outcomes(run: Samples, read: Callable[[list[int]], list[Sequence]], places: list[int]) -> list[Any]:
    """Return the sequences of the places, or the error."""
    try:
        return read(places)
    except DocumentError as error:
        return [type(error), str(error)]


@given(data=st.data(), size=st.integers(1, 30), seed=st.integers(0, 3))
def test_documents_that_threads_read_give_the_same_sequences_and_errors(
    data: st.DataObject, size: int, seed: int
) -> None:
    bad, gone, long = (
        data.draw(st.sets(st.integers(0, size - 1), max_size=most)) for most in (size, 2, size)
    )
    policy = {
        "on_error": data.draw(st.sampled_from(["skip", "stop"])),
        "too_long": data.draw(st.sampled_from(["cut", "skip", "stop"])),
    }
    places = data.draw(st.lists(st.integers(0, 39), unique=True, max_size=20))

    class Mixed(Words):
        def __getitem__(self, index: int) -> Document:
            if index in gone:
                raise StorageError(f"/data/{self.name}.tar: gone at {index}")
            document = super().__getitem__(index)
            return document + Document((Text("more " * 30),)) if index in long else document

    class MixedInThreads(Mixed):
        is_thread_safe = True

    def run(cls: type[Words]) -> Samples:
        return samples([cls("a", size, bad), Words("b", 5)], seed=seed, **policy)

    with mock.patch("dreamkit.data.document_reads.DELAYS", ()):
        alone, threaded = run(Mixed), run(MixedInThreads)
        one_by_one = outcomes(alone, lambda places: [alone[place] for place in places], places)
        assert outcomes(threaded, threaded.__getitems__, places) == one_by_one


def test_the_reads_of_a_batch_overlap() -> None:
    barrier = threading.Barrier(16)

    class Slow(WordsInThreads):
        def __getitem__(self, index: int) -> Document:
            barrier.wait(timeout=60)  # until 16 reads wait at once
            return super().__getitem__(index)

    loader: Any = DataLoader(samples([Slow("a", 100)], 48), batch_size=16, collate_fn=list)
    assert [len(batch) for batch in loader] == [16, 16, 16]


def test_a_data_set_that_does_not_allow_threads_is_read_in_one() -> None:
    threads = set[str]()

    class Watched(Words):
        def __getitem__(self, index: int) -> Document:
            threads.add(threading.current_thread().name)
            return super().__getitem__(index)

    samples([Watched("a", 100), WordsInThreads("b", 100)]).__getitems__([*range(16)])
    assert threads == {threading.current_thread().name}


def test_no_read_goes_on_after_the_error_of_a_batch() -> None:
    class Slow(WordsInThreads):
        def __getitem__(self, index: int) -> Document:
            document = super().__getitem__(index)
            time.sleep(0.2)
            return document

    dataset = Slow("a", 100)
    run = samples([dataset], 100, on_error="stop")
    dataset.bad = frozenset([run.position(0)[1]])
    with pytest.raises(DocumentError):
        run.__getitems__([*range(100)])
    reads = len(dataset.reads)
    assert reads < 100
    time.sleep(0.3)
    assert len(dataset.reads) == reads


def test_processes_that_fork_after_a_batch_have_threads_of_their_own() -> None:
    run = samples([WordsInThreads("a", 30, range(0, 30, 3)), WordsInThreads("b", 7, [1, 2])])
    expected = run.__getitems__([*range(40)])  # starts threads here

    def read(**arguments: Any) -> list[Sequence]:
        loader: Any = DataLoader(run, batch_size=8, collate_fn=list, num_workers=2, **arguments)
        return [sequence for batch in loader for sequence in batch]

    assert read(multiprocessing_context="fork") == expected
    assert pickle.loads(pickle.dumps(run)).__getitems__([*range(40)]) == expected


class Long(Words):
    """Documents of which every other one is too long for a row."""

    def __getitem__(self, index: int) -> Document:
        texts = [Text("word " * 3), Text("more " * 30)][: 1 + index % 2]
        return Document(tuple(texts), name=f"{self.name}.{index}")


def test_each_policy_for_long_documents() -> None:
    cut = [*map(samples([Long("a", 4)]).__getitem__, range(40))]
    assert {(sequence.name, sequence.is_cut) for sequence in cut} == {
        (f"a.{n}", n % 2 == 1) for n in range(4)
    }
    assert all(len(sequence) <= 64 and not sequence.skipped for sequence in cut)
    skipped = [*map(samples([Long("a", 4)], too_long="skip").__getitem__, range(40))]
    assert {sequence.name for sequence in skipped} == {"a.0", "a.2"}
    records = [document for sequence in skipped for document in sequence.skipped]
    assert records and all(document.is_long and document.index % 2 for document in records)
    with pytest.raises(
        DocumentError, match=r"a\.\d: expected at most 64 tokens, .*; or set train\.too_long to cut"
    ):
        [*map(samples([Long("a", 4)], too_long="stop").__getitem__, range(40))]
    stopped = samples([Long("a", 4)], too_long="skip", on_error="stop")  # a long document is not a bad one
    assert len([*map(stopped.__getitem__, range(40))]) == 40


class Banners(Words):
    """Documents of a plug-in whose images are too narrow."""

    def __getitem__(self, index: int) -> Document:
        picture = tiny.picture(0).resize((1, 101 if index % 2 else 16))
        return Document((Image(picture, draw=True),), name=f"{self.name}.{index}")


def test_the_images_of_every_data_set_are_checked() -> None:
    sequences = [*map(samples([Banners("a", 4)]).__getitem__, range(40))]
    assert {sequence.name for sequence in sequences} == {"a.0", "a.2"}
    assert {document.reason.split(",")[0] for sequence in sequences for document in sequence.skipped} == {
        "expected an image whose longer side is at most 100 times the shorter"
    }


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    delays: list[float] = []
    monkeypatch.setattr("dreamkit.data.document_reads.time.sleep", delays.append)
    return delays


@pytest.mark.parametrize(
    "error",
    [StorageError("/data/a.tar: cannot read"), OSError(errno.EIO, "I/O error"), TimeoutError("timed out")],
)
def test_a_failing_disk_is_read_again_with_longer_and_longer_delays(
    slept: list[float], error: Exception
) -> None:
    for times in range(len(DELAYS) + 1):
        slept.clear()
        dataset = Words("a", 1, failures={0: [error] * times})
        sequence = samples([dataset])[0]
        assert sequence.name == "a.0" and not sequence.skipped
        assert slept == list(DELAYS[:times])


@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_a_disk_that_goes_on_failing_stops_the_run(slept: list[float], on_error: str) -> None:
    dataset = Words("a", 9, failures={n: [OSError(errno.ESTALE, "Stale file handle")] * 9 for n in range(9)})
    with pytest.raises(StorageError, match=r"data\.0 \(Words\): document \d: OSError: .*Stale file handle"):
        samples([dataset], on_error=on_error)[0]
    assert len({*dataset.reads}) == 1 and len(dataset.reads) == 1 + len(DELAYS)
    assert slept == list(DELAYS)


@pytest.mark.parametrize("on_error", ["skip", "stop"])
def test_a_process_without_memory_or_files_stops_at_once(slept: list[float], on_error: str) -> None:
    for error, kind in (
        (MemoryError(), TrainingError),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), OSError),
    ):
        dataset = Words("a", 1, failures={0: [error] * 9})
        with pytest.raises(kind) as caught:
            samples([dataset], on_error=on_error)[0]
        assert error in (caught.value, caught.value.__cause__) and len(dataset.reads) == 1 and slept == []
        with pytest.raises(type(error)) as raised:  # also by the readers of plug-ins
            read_error("a.tar: cannot read", error)
        assert raised.value is error


@pytest.mark.parametrize("workers", [0, 2])
def test_a_document_that_takes_too_much_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    tiny.picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a")

    def fail(self: PngImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", fail)
    run = Samples(Mixture([Pairs(PairsConfig(tmp_path))], [1.0], length=4), SEQUENCER, Policy())
    with pytest.raises(TrainingError) as caught, original_errors():
        next(iter(DataLoader(run, 2, num_workers=workers, collate_fn=list)))
    path = tmp_path / "a.png"
    assert str(caught.value).startswith(f"{path}: cannot read the image {path}: too little memory; ")


def test_a_summary_counts_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkit.data.skipped.MAX_NAMES", 3)
    summary = SkippedSummary()
    for number in [*range(9), 1, 1, 8, 8, 8]:
        summary.add(Skipped(number, 0, number, f"/{number}.tar", None, "cut"))
    assert len(summary._shards) == 3
    assert summary.most_common() == "14 of 14 in data.0; 3 of 14 in /1.tar; 14 of 14: cut"


def test_an_error_of_too_little_memory_names_what_was_read() -> None:
    error = MemoryError()
    with pytest.raises(MemoryError):
        read_error("a.tar!b: cannot read the image", error)
    assert describe_error(error) == "MemoryError: too little memory; a.tar!b: cannot read the image"


def test_a_signal_ends_the_waiting_for_a_disk(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_reads, "pending", lambda: KeyboardInterrupt())
    dataset = Words("a", 1, failures={0: [StorageError("gone")] * 9})
    with pytest.raises(StorageError, match="gone"):
        samples([dataset])[0]
    assert slept == []


def test_a_missing_file_of_a_data_set_that_leaves_it_as_it_is_is_skipped(slept: list[float]) -> None:
    dataset = Words("a", 2, failures={0: [FileNotFoundError(errno.ENOENT, "No such file", "x")] * 99})
    run = samples([dataset])
    names = {sequence.name for sequence in map(run.__getitem__, range(40))}
    assert names == {"a.1"} and slept == []


def test_a_mistake_in_the_code_of_a_data_set_is_not_a_bad_document() -> None:
    dataset = Words("a", 3, failures={n: [ZeroDivisionError()] for n in range(3)})
    with pytest.raises(ZeroDivisionError):
        samples([dataset])[0]
