"""Documents that a run skips: where each is, and what most of them have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from dreamkit.errors import excerpt

# The place at the start of an error: `file:line`, `archive!member`, or a path. A path with a space is absolute.
# A `!` elsewhere than after an archive's suffix is part of a name.
_NAME: Final = r"(?:(?!: ).)+?"
_LINE: Final = re.compile(rf"(?P<shard>{_NAME}):(?P<member>\d+): ", re.DOTALL)
_ARCHIVE: Final = r"\.(?i:tar|tgz|zip|gz|bz2|xz|zst|json|jsonl|parquet|arrow|csv|tsv|h5|hdf5|lmdb|mdb)"
_MEMBER: Final = re.compile(rf"(?P<shard>{_NAME}{_ARCHIVE})!(?P<member>{_NAME}): ", re.DOTALL)
_FILE: Final = re.compile(r"(?P<path>[/~].+?|[^ ]*[/.][^ ]*?): ", re.DOTALL)
_VARIABLE: Final = re.compile(
    r"'[^']*'|\S*/\S*|\d[\d,.]*"
)  # differs between documents with one kind of problem
MAX_KIND: Final = 120  # characters
MAX_NAMES: Final = 10_000  # shards, or kinds of reasons, that are counted
SKIPPED: Final = "skipped.jsonl"  # the list in the folder of a run or a cache
UNLIMITED: Final = 1000  # documents that are read before the limit of the bad ones holds


@dataclass(frozen=True)
class Skipped:
    """A document that cannot be used.

    Attributes:
        place: place in the run that another document took.
        data: number of the data set.
        index: number of the document in it.
        shard: file or archive with the document, or folder with its file; None if the error names none.
        member: line, member of the archive, or file in the folder.
        reason: why it cannot be used.
        is_long: flag: it is only too long, and the recipe skips long documents.
    """

    place: int
    data: int
    index: int
    shard: str | None
    member: str | None
    reason: str
    is_long: bool = False

    @property
    def text(self) -> str:
        """The place and the reason."""
        return ": ".join(filter(None, (self.shard, self.member, self.reason)))


def split_place(message: str) -> tuple[str | None, str | None, str]:
    """Return shard, member and reason of an error about a document, which starts with the document's place."""
    if (match := _LINE.match(message) or _MEMBER.match(message)) is not None:
        return match["shard"], match["member"], message[match.end() :]
    if (match := _FILE.match(message)) is not None:
        path = PurePath(match["path"])
        return str(path.parent), path.name, message[match.end() :]
    return None, None, message


class SkippedSummary:
    """Numbers of skipped documents by data set, shard and kind of reason: of the first `MAX_NAMES` of each."""

    def __init__(self) -> None:
        self.documents = 0
        self._sets: Counter[str] = Counter()
        self._shards: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()

    def add(self, document: Skipped) -> None:
        """Count a document."""
        self.documents += 1
        _count(self._sets, f" in data.{document.data}")
        _count(self._kinds, f": {kind_of_problem(document.reason)}")
        if document.shard is not None:
            _count(self._shards, f" in {document.shard}")

    def most_common(self) -> str:
        """Return the most common data set, shard and kind of reason, each with its number."""
        return "; ".join(
            f"{number:,} of {self.documents:,}{text}"
            for numbers in (self._sets, self._shards, self._kinds)
            for text, number in numbers.most_common(1)
        )


def _count(numbers: Counter[str], name: str) -> None:
    """Count a name, unless it is new and there are many."""
    if name in numbers or len(numbers) < MAX_NAMES:
        numbers[name] += 1


def summarize(documents: Iterable[Skipped]) -> str:
    """Return what most of some skipped documents have in common."""
    summary = SkippedSummary()
    for document in documents:
        summary.add(document)
    return summary.most_common()


def is_beyond(max_skipped: float, bad: int, read: int) -> bool:
    """Return True if more than the share `max_skipped` of the documents that were read are bad."""
    return read > UNLIMITED and bad > max_skipped * read


def kind_of_problem(reason: str) -> str:
    """Return a reason without the names and numbers in it: one text for the same problem of several documents."""
    return excerpt(_VARIABLE.sub("...", reason), MAX_KIND)
