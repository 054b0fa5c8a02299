"""The interface of a data set, which a recipe names under `data`."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from dreamkit.data.fingerprint import sampled
from dreamkit.document import Document


class Dataset(ABC):
    """Documents by number, built from a recipe section: `Dataset(Config(...))`.

    Attributes:
        Config: frozen dataclass of the recipe section.
        notes: lines for the user about data that is ignored, such as "c.jsonl: unknown key 'tools' in 3 records".
            `check` and `train` print them.
        is_thread_safe: flag: several threads may read documents at once. Training then reads those of a batch so, which
            hides the time that a disk or network takes. Set it to True unless a read changes what another one uses,
            such as the position of an open file.
    """

    Config: ClassVar[type]
    is_thread_safe: ClassVar[bool] = False
    notes: Sequence[str] = ()

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Check the data that `config` names.

        This must be fast: `dreamkit check` also builds the data set, and reads document 0.

        Raises:
            DocumentError: missing files or invalid documents, with file and line.
        """

    @classmethod
    def tiny_config(cls, folder: Path) -> Any:
        """Write an example of a few documents into the empty `folder`, and return its `Config`.

        `dreamkit test-plugin` tests the data set with it. The default is None: the class has no example.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of documents, which never changes."""

    @abstractmethod
    def __getitem__(self, index: int) -> Document:
        """Return document `index`, from 0; the same in each call.

        Raises:
            IndexError: there is no such document, as for each negative `index`; `check_index` raises it.
            DocumentError: the document or one of its images cannot be read.
        """

    def check_index(self, index: int) -> None:
        """Raise an IndexError unless `index` is from 0 to `len(self) - 1`; the first line of a `__getitem__`.

        Python's sequences count negative numbers from their end. Here, such a number is the result of a mistake.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected a document from 0 to {len(self) - 1:,}, got {index:,}")

    def sample(self, index: int, choices: random.Random) -> Document:
        """Return document `index` for one use in training, with random choices, such as one of several captions.

        The choices are a function of `choices` alone. The default makes none.

        Raises:
            DocumentError: the document or one of its images cannot be read.
        """
        return self[index]

    def fingerprint(self) -> dict[str, str]:
        """Return strings by name that identify the documents, wherever these are stored.

        Resume points contain the fingerprint. `--resume` refuses data if a name has another string than before; it
        ignores names on one side alone. The default has the number of documents and hashes of up to 64 of them. A data
        set may add names, or leave out hashes that take too long; it must not add paths or times, which a copy changes.
        """
        return sampled(self)
