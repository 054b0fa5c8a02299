"""Checks of what a data set makes of its files: whole, in another folder, and damaged."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from hypothesis import strategies as st

from dreamkit.data.fingerprint import fingerprint_problem
from dreamkit.errors import DocumentError, DreamkitError, excerpt, printable
from dreamkit.testing.check import check
from dreamkit.testing.dataset_subject import DatasetSubject, expect_same_document
from dreamkit.testing.expect import ContractError, KitError, expect, expect_true, named

Kind: TypeAlias = Literal["random bytes", "flipped bytes", "half", "empty", "missing"]
FLIPPED = 16  # bytes
MOST_DAMAGED = 8  # files, each in a copy of its own
Result = TypeVar("Result")


class Damage(NamedTuple):
    """Damage to a file, before the data set is built on it or after (`late`)."""

    kind: Kind
    seed: int
    late: bool

    def apply(self, path: Path) -> None:
        """Damage a file. A changed file is a new one: a process with the old one in memory keeps it."""
        data, choices = path.read_bytes(), random.Random(self.seed)
        path.unlink()
        if self.kind == "missing":
            return
        if self.kind == "empty":
            data = b""
        elif self.kind == "half":
            data = data[: len(data) // 2]
        elif self.kind == "random bytes":
            data = choices.randbytes(len(data))
        else:
            start = choices.randrange(max(1, len(data) - FLIPPED))
            flipped = bytes(byte ^ 0xFF for byte in data[start : start + FLIPPED])
            data = data[:start] + flipped + data[start + FLIPPED :]
        path.write_bytes(data)


damages = st.builds(
    Damage,
    kind=st.sampled_from(get_args(Kind)),
    seed=st.integers(0, 999),
    late=st.booleans(),
)


@check("dataset")
def rebuilding(subject: DatasetSubject) -> None:
    """Two data sets of one Config have the same documents in the same order.

    All processes of a run, and a resumed run, see the same data.
    """
    one, other = subject.make(), subject.make()
    expect(len(other), len(one), "the number of documents", "as of the same Config")
    for index in subject.numbers:
        expected, actual = (subject.document(dataset, index) for dataset in (one, other))
        expect_same_document(actual, expected, f"dataset[{index}]", "another data set of the same Config")


@check("dataset")
def fingerprint(subject: DatasetSubject) -> None:
    """`fingerprint` returns strings by name, which are equal for a copy of the data in another folder.

    `--resume` accepts data that was moved, and refuses data that was changed.
    """
    subject.call_text = "fingerprint()"
    value = subject.make().fingerprint()
    if problem := fingerprint_problem(value):
        raise ContractError(problem)
    _, config = subject.copy()
    subject.call_text = "fingerprint() of a copy in another folder"
    copied = subject.make(config).fingerprint()
    expect(sorted(copied), sorted(value), "the names")
    for name, text in value.items():
        expect(copied[name], text, f"'{name}'", "as of the original")


@check("dataset")
def data_unchanged(subject: DatasetSubject) -> None:
    """Building and reading write nothing into the folder of the data and change no file in it.

    Data that many people share, on a disk that is read-only, can be trained on.
    """
    folder, config = subject.copy()
    before = _contents(folder)
    dataset = subject.make(config)
    for index in subject.numbers:
        subject.document(dataset, index)
        subject.sample(dataset, index, 0)
    dataset.fingerprint()
    subject.call_text = "building and reading a data set"
    after = _contents(folder)
    odd = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect_true(not odd, f"changes of {', '.join(odd)}", "the files of the data as before")


def _contents(folder: Path) -> dict[str, str]:
    """Return a hash of each file, and the paths of folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@check("dataset")
def notes(subject: DatasetSubject) -> None:
    """`notes` are lines of text.

    `check` and `train` print them, so that a user sees what of the data is not read.
    """
    lines = subject.make().notes
    expect_true(not isinstance(lines, str), f"'{excerpt(str(lines))}'", "a list of strings in notes")
    for line in lines:
        expect_true(isinstance(line, str), named(type(line)), "strings in notes")
        is_line = bool(line.strip()) and line == printable(line)
        expect_true(is_line, repr(excerpt(line)), "lines without control characters in notes")


def _has_no_files(subject: DatasetSubject) -> str | None:
    return None if _files(subject.written) else "its example has no files"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@check("dataset", unless=_has_no_files, damage=damages)
def damaged_files(subject: DatasetSubject, damage: Damage) -> None:
    """Whatever happens to a file, building raises a DreamkitError and reading a DocumentError, both with the place.

    One bad image among millions is skipped and recorded, instead of ending the run with a traceback.
    """
    names = [path.relative_to(subject.written) for path in _files(subject.written)]
    for name in names[:: -(-len(names) // MOST_DAMAGED)]:
        folder, config = subject.copy()
        places = [str(folder), *(each.name for each in names)]
        _expect_document_errors(subject, config, folder / name, damage, places)
        shutil.rmtree(folder, ignore_errors=True)  # these copies are many


def _expect_document_errors(
    subject: DatasetSubject, config: Any, file: Path, damage: Damage, places: list[str]
) -> None:
    shown = f"with a damaged {file.name}"
    dataset = subject.make(config) if damage.late else None
    damage.apply(file)
    if dataset is None:
        subject.call_text = f"building a data set {shown}"
        dataset = _result_of(lambda: subject.example.cls(config), DreamkitError, places)
    if dataset is None:
        return
    size = len(dataset)
    for index in (number for number in subject.numbers if number < size):
        subject.call_text = f"dataset[{index}] {shown}"
        _result_of(partial(dataset.__getitem__, index), DocumentError, places)
        subject.call_text = f"dataset.sample({index}, random.Random(0)) {shown}"
        _result_of(partial(dataset.sample, index, random.Random(0)), DocumentError, places)


def _result_of(call: Callable[[], Result], kind: type[DreamkitError], places: list[str]) -> Result | None:
    """Return the result of `call`, or None after an error of this kind that names one of `places`."""
    try:
        return call()
    except kind as error:
        has_place = any(printable(place) in str(error) for place in places)
        expect_true(has_place, f"'{excerpt(str(error))}'", "the name of a file of the data in the error")
        return None
    except (KeyboardInterrupt, KitError):
        raise
    except Exception as error:
        raise ContractError(
            f"expected a {kind.__name__}, got {type(error).__name__}: {excerpt(str(error))}"
        ) from error
