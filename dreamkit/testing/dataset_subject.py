"""A data set under test: its example files, and how checks build and read it."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from itertools import count as numbers_from
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from dreamkit.data.dataset import Dataset
from dreamkit.data.fingerprint import document_hash
from dreamkit.document import Document, Segment, Text
from dreamkit.errors import count, excerpt
from dreamkit.storage.cache_folder import VARIABLE
from dreamkit.testing.expect import KitError, expect, expect_true, named
from dreamkit.testing.subject import Subject

MOST_READ = 16  # documents that a check reads

Write: TypeAlias = Callable[[Path], Any]


@dataclass(frozen=True)
class Example:
    """A class of data sets, and the function that writes an example into an empty folder and returns its Config."""

    cls: type[Dataset]
    write: Write

    @property
    def __wrapped__(self) -> type[Dataset]:
        """The class, whose place messages have until a data set is built."""
        return self.cls

    def __call__(self, folder: Path) -> Dataset:
        """Write the example into an empty folder and return its data set."""
        return self.cls(self.write(folder))


def tiny_dataset(cls: type[Dataset], write: Write | None = None) -> Example:
    """Return an example of a data set: `write(folder)` writes its files into an empty folder and returns its `Config`.

    The default of `write` is `cls.tiny_config`. Some checks call it again, for another folder.

    Raises:
        KitError: `cls` is not a subclass of `Dataset`, or it has no example and `write` is None.
    """
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise KitError(f"expected a subclass of Dataset, got {cls!r}")
    if write is None and (reason := missing_example(cls)):
        raise KitError(f"{reason}, or pass a function that writes one")
    return Example(cls, cls.tiny_config if write is None else write)


def missing_example(cls: type[Dataset]) -> str | None:
    """Return the message about a class without an example of its own, or None if it overrides `tiny_config`."""
    if cls.tiny_config.__func__ is not Dataset.tiny_config.__func__:  # type: ignore[attr-defined]
        return None
    return f"{cls.__qualname__} has no example; write one in its class method `tiny_config(folder)`"


class DatasetSubject(Subject):
    """A data set whose example is written once, into a temporary folder that is removed at the end."""

    kind: ClassVar[str] = "dataset"
    noun = "data set"

    def __init__(self, build: Example) -> None:
        if not isinstance(build, Example):
            raise KitError(f"expected contracts.tiny_dataset(...) for a data set, got {build!r}")
        super().__init__(build)
        self.example = build
        self._numbers = numbers_from(1)  # of folders

    @cached_property
    def room(self) -> Path:
        """The temporary folder of all files of the checks."""
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="dreamkit-kit-")))
        weakref.finalize(self, _remove, folder, os.getpid())
        return folder

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Keep indexes in the temporary folder, not in the user's cache folder; print no lines about them."""
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self.room / "cache")
        try:
            with redirect_stderr(StringIO()):
                yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before

    @cached_property
    def config(self) -> Any:
        """The Config of a copy of the example that no check changes."""
        return self.copy()[1]

    @cached_property
    def written(self) -> Path:
        """The folder of the example as it was written; no data set is built on it."""
        return self._write()[0]

    def _write(self) -> tuple[Path, Any]:
        """Write the example into a new folder; return the folder and the Config."""
        folder = self.room / f"example-{next(self._numbers)}"
        folder.mkdir()
        try:
            config = self.example.write(folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also sys.exit and the exceptions that skip a test
            raise KitError(f"writing the example failed: {type(error).__name__}: {error}") from error
        if config is None:
            raise KitError("expected a Config from the function that writes the example, got None")
        return folder, config

    def copy(self) -> tuple[Path, Any]:
        """Return a new folder with a copy of the example's files, whose times are new, and its Config."""
        source = self.written
        folder, config = self._write()
        shutil.rmtree(folder)  # written again, a file may have other bytes
        shutil.copytree(source, folder, symlinks=True, copy_function=shutil.copyfile)
        return folder, config

    def make(self, config: Any = None) -> Dataset:
        """Return a new data set of the example, or of another Config.

        Raises:
            KitError: it cannot be built.
        """
        try:
            dataset = self.example.cls(self.config if config is None else config)
        except (KeyboardInterrupt, KitError):
            raise
        except BaseException as error:
            raise KitError(f"building the data set failed: {type(error).__name__}: {error}") from error
        self.definition = type(dataset)
        return dataset

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of the documents that checks read: all of a small data set, the first and the last of any."""
        size = len(self.make())
        expect_true(size > 0, f"{size}", "at least 1 document in the example")
        if size <= MOST_READ:
            return list(range(size))
        return [number * (size - 1) // (MOST_READ - 1) for number in range(MOST_READ)]

    def document(self, dataset: Dataset, index: int) -> Document:
        """Return document `index`, after a check of its type."""
        self.call_text = f"dataset[{index}]"
        return self._expect_document(dataset[index])

    def sample(self, dataset: Dataset, index: int, seed: int) -> Document:
        """Return document `index` for one use in training, after a check of its type."""
        self.call_text = f"dataset.sample({index}, random.Random({seed}))"
        return self._expect_document(dataset.sample(index, random.Random(seed)))

    def _expect_document(self, document: Any) -> Document:
        is_document = isinstance(document, Document)
        expect_true(is_document, named(type(document)), f"a Document from {self.call_text}")
        result: Document = document
        return result


def expect_same_document(actual: Document, expected: Document, name: str, other: str) -> None:
    """Fail unless two documents, called `name` and `other`, have the same name and equal segments."""
    expect(actual.name, expected.name, f"the name of {name}", f"as of {other}")
    expect(len(actual), len(expected), f"the number of segments of {name}", f"as of {other}")
    for number, pair in enumerate(zip(actual, expected, strict=True)):
        hashes = [document_hash(Document((segment,))) for segment in pair]
        shown = [_described(segment) for segment in pair]
        expect_true(hashes[0] == hashes[1], shown[0], f"segment {number} of {name} as of {other}: {shown[1]}")


def _described(segment: Segment) -> str:
    if isinstance(segment, Text):
        return f"'{excerpt(segment.text)}'"
    width, height = segment.picture.size
    return f"an image of {width} x {count(height, 'pixel')}"


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process ends before its parent
        shutil.rmtree(folder, ignore_errors=True)
