"""Samples of tar archives: the members with one key, and the index of their places."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from dreamkit import DocumentError, Location, printable, read_error
from dreamkit_data.bucket_reads import BLOCK, BucketReads, patient
from dreamkit_data.buckets import STATUS_REQUESTS, is_remote, statuses
from dreamkit_data.left_out import LeftOut
from dreamkit_data.packed_files import unpacking_command
from dreamkit_data.spans import SPAN, Spans, changed_error
from dreamkit_data.tar_members import Member, Read, members

MOST_MEMBERS: Final = 4096  # of a sample
MOST_SAMPLE: Final = 2**28  # bytes, a quarter of a GiB
MOST_TEXT: Final = 2**24  # bytes of a member that is read when indexing
WINDOW: Final = 2**13  # bytes of one read when indexing: small members and the header of the next sample
PICKLES: Final = frozenset(["pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill"])
IMAGES: Final = ("jpg", "jpeg", "png", "webp")  # suffixes of members

Content: TypeAlias = Callable[[Member], bytes]


class TarSample(NamedTuple):
    """Consecutive members whose names are equal up to the first dot of their last part, as in webdataset.

    Attributes:
        key: that common part of the names.
        members: regular files by the rest of their names in lower case, such as `jpg` or `seg.png`.
    """

    key: str
    members: dict[str, Member]


LeaveOut: TypeAlias = Callable[..., None]  # takes a reason and a noun, as `LeftOut.add`
# Returns the members of a sample that a document needs; none, after it called `LeaveOut`, to leave the sample out.
Choose: TypeAlias = Callable[[TarSample, Content, LeaveOut], Collection[Member]]


def samples(read: Read, start: int, end: int, where: str, *, whole: bool = True) -> Iterator[TarSample]:
    """Yield the samples between two offsets of an archive; the arguments are those of `members`.

    Members without a dot in their names, hidden ones and webdataset's `__meta__` have no key and are passed over.

    Raises:
        DocumentError: a damaged archive, a member that is refused, or a sample with two members of one name.
    """
    current: TarSample | None = None
    for member in members(read, start, end, where, whole=whole):
        key, suffix = split_name(member.name)
        if suffix.rpartition(".")[2] in PICKLES:
            raise DocumentError(
                f"{where}!{printable(member.name)}: expected no pickle in an archive, because reading one can run any "
                "code; write the archive without it"
            )
        if not key or not suffix:
            continue
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = TarSample(key, {})
        if suffix in current.members:
            raise DocumentError(
                f"{where}!{printable(member.name)}: expected one member of this name, got two"
            )
        if len(current.members) == MOST_MEMBERS:
            raise DocumentError(
                f"{where}!{printable(key)}: expected at most {MOST_MEMBERS:,} members, got more"
            )
        current.members[suffix] = member
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix, without its dot and in lower case, of a member's name; "" for none."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return "", ""
    return folder + slash + stem, suffix.lower()


def tar_index(choose: Choose, path: Location) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the places of an archive's samples, and facts about those that are left out.

    Reads the headers, and what `choose` reads.

    Returns:
        An array of `SPAN`, and facts: those of `LeftOut`, and the `cost` in reads and bytes.

    Raises:
        DocumentError: a damaged or cut archive, a member that is refused, or an error of `choose`.
    """
    where = printable(path)
    starts, sizes = array("Q"), array("L")
    left_out = LeftOut()
    try:
        with _opened(path, where) as (read, size):
            _refuse_packed(read(0, 8), where)
            for sample in samples(read, 0, size, where):
                leave_out = partial(left_out.add, name=f"{path.name}!{sample.key}")
                try:
                    chosen = choose(sample, lambda member: read(member.start, member.size), leave_out)
                except DocumentError as error:
                    raise DocumentError(f"{where}!{printable(sample.key)}: {error}") from error
                if not chosen:
                    continue
                start = min(member.head for member in chosen)
                taken = max(member.start + member.size for member in chosen) - start
                if taken > MOST_SAMPLE:
                    leave_out(f"with more than {MOST_SAMPLE:,} bytes")
                    continue
                starts.append(start)
                sizes.append(taken)
    except OSError as error:
        raise read_error(f"{where}: cannot read the file: {error.strerror}", error) from error
    rows = np.empty(len(starts), SPAN)
    rows["start"], rows["size"] = starts, sizes
    reads = read.reads + (STATUS_REQUESTS if is_remote(path) else 0)
    cost = {"reads": reads, "bytes": read.bytes, "documents": len(rows)}
    return rows, {"cost": cost, **left_out.facts()}


def read_tar_sample(spans: Spans, index: int) -> tuple[str, TarSample, Content]:
    """Read sample `index` of indexed archives at once.

    Returns:
        Its place `archive!key`, its members, and the function that returns a member's content.

    Raises:
        StorageError: the archive is gone, cannot be read, or is another one than was indexed.
    """
    span = spans[index]
    data = spans.read(span)
    where = printable(span.path)
    try:
        (sample,) = samples(lambda start, size: data[start : start + size], 0, len(data), where, whole=False)
    except ValueError as error:  # no member, or those of several samples
        raise changed_error(span.path) from error
    return (
        f"{where}!{printable(sample.key)}",
        sample,
        lambda member: data[member.start : member.start + member.size],
    )


def _refuse_packed(head: bytes, where: str) -> None:
    if command := unpacking_command(head):
        raise DocumentError(
            f"{where}: expected a tar, got a compressed file, which has no random access; unpack it with {command}"
        )


@contextmanager
def _opened(path: Location, where: str) -> Iterator[tuple[_Window, int]]:
    """Open an archive for indexing, and yield its reader and its size. An object is read whole, in large blocks."""
    if is_remote(path):
        status, reads = statuses([path])[0], BucketReads(path)
        read = patient(lambda start, size: reads.read(start, size, status))
        yield _Window(read, BLOCK, status.size), status.size
        return
    if not path.is_file():  # to open a named pipe could wait forever
        raise DocumentError(f"{where}: expected a tar in a regular file")
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        yield _Window(lambda start, size: os.pread(descriptor, size, start), WINDOW, size), size


class _Window:
    """A reader of a file of `end` bytes: each read takes at least `least`, and those within the window take none.

    The window has what was read last, and as much before it: the end of a sample is seen in the header of the next one,
    when its texts may lie in the bytes before.

    Attributes:
        reads, bytes: number and bytes of the reads.
    """

    def __init__(self, read: Read, least: int, end: int) -> None:
        self.reads = self.bytes = 0
        self._read, self._least, self._end = read, least, end
        self._begin, self._content = 0, b""

    def __call__(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start` on, or fewer at the end of the file."""
        size = min(size, max(0, self._end - start))
        if start < self._begin or start + size > self._begin + len(self._content):
            self._move(start, size)
        return self._content[start - self._begin : start - self._begin + size]

    def _move(self, start: int, size: int) -> None:
        last = self._begin + len(self._content)
        if (
            self._begin <= start < last + self._least
        ):  # it goes on, or after a gap that costs less than a read
            begin = min(start, max(self._begin, last - self._least))
            before = self._content[begin - self._begin :]
        else:
            begin = last = start
            before = b""
        content = self._read(last, max(start + size - last, self._least))
        self.reads += 1
        self.bytes += len(content)
        self._begin, self._content = begin, before + content
