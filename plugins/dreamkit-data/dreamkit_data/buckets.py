"""Objects in buckets, by their URLs. This is the only file that imports fsspec."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeAlias, TypeGuard, cast

from dreamkit import DocumentError, Location, RangeReads, StorageError, Url, count, printable
from dreamkit_data.bucket_errors import opening_errors, reading_errors, unknown_scheme

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BLOCK: Final = 2**23  # bytes of a request, when a file is read in order
THREADS: Final = 16  # requests at once
MOST_SINGLE: Final = 64  # objects of a folder that are looked up one by one; for more, the folder is listed
MOST_SEEN: Final = 2**16  # objects of which a process remembers that they are those of the index
# Facts about an object that change with its content, the best first.
VERSIONS: Final = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


class ObjectStatus(NamedTuple):
    """Size of an object in bytes, and a hash of its ETag, or of another fact that changes with its content."""

    size: int
    version: int


def is_remote(path: Location) -> TypeGuard[Url]:
    """Return True for a URL, which the functions of this file take."""
    return isinstance(path, Url)


def statuses(urls: Sequence[Url]) -> list[ObjectStatus]:
    """Return the present status of each object: the argument `statuses` of `dreamkit.indexed`.

    Raises:
        DocumentError: an object is missing or may not be read, or a package or credentials are missing.
        StorageError: the network or the service fails.
    """
    folders = defaultdict(list)
    for url in urls:
        folders[url.rpartition("/")[0] + "/"].append(url)
    found: dict[str, ObjectStatus | None] = {}
    single: list[Url] = []
    for folder, members in folders.items():
        if len(members) > MOST_SINGLE:
            found.update(listed(Url(folder)))
        else:
            single += members
    with ThreadPoolExecutor(THREADS) as pool:
        found.update(zip(single, pool.map(_status, single), strict=True))
    missing = [url for url in urls if found.get(url) is None]
    if missing:
        some = f"; {len(missing):,} of {count(f'{len(urls):,}', 'object')} are missing" if missing[1:] else ""
        raise DocumentError(
            f"{printable(missing[0])}: no such object{some}; correct the path of the data set"
        )
    return [cast(ObjectStatus, found[url]) for url in urls]


def listed(folder: Url) -> dict[Url, ObjectStatus]:
    """Return the objects directly in a folder, whose URL ends with `/`, with their statuses, by name.

    Raises:
        DocumentError, StorageError: as `statuses`. A folder without objects is missing, or empty.
    """
    system = _filesystem(folder)
    with opening_errors(folder):
        system.invalidate_cache()
        try:
            facts = system.ls(system._strip_protocol(folder), detail=True)
        except FileNotFoundError:
            return {}
    return _by_url(folder, system, facts)


def matches(pattern: Url) -> list[Url]:
    """Return the URLs of the objects that a glob of fsspec names (`*`, `?`, `[ab]`, `**`), by name.

    Raises:
        DocumentError, StorageError: as `statuses`.
    """
    system = _filesystem(pattern)
    with opening_errors(pattern):
        system.invalidate_cache()
        facts = system.glob(system._strip_protocol(pattern), detail=True).values()
    return list(_by_url(Url(f"{pattern.scheme}://"), system, facts))


class BucketReads:
    """An object that is read by ranges, with the interface of `dreamkit.RangeReads`: one request for each read.

    It holds nothing that processes or threads could share, so that a process can be forked at any time.
    """

    def __init__(self, url: Url) -> None:
        self.url = url

    def read(self, start: int, size: int, status: tuple[int, int] | None = None) -> bytes:
        """Return `size` bytes from offset `start` on, or fewer if the object ends before.

        Args:
            start: offset of the first byte.
            size: number of bytes.
            status: the status that the object must have; without one, the present status is requested first. S3's
                response has the ETag, which is compared for each read. Of other services, the status is requested
                once in a process.

        Raises:
            StorageError: the object has another status or is gone, or the network or the service fails.
        """
        with reading_errors(self.url):
            status = _required_status(self.url) if status is None else status
            end = min(start + size, status[0])  # before memory is taken
            if start >= end:
                return b""
            system = _filesystem(self.url)
            if self.url.scheme in ("s3", "s3a"):
                data, present = _s3_range(system, self.url, start, end)
            else:
                present = _seen_status(self.url)
                data = system.cat_file(system._strip_protocol(self.url), start=start, end=end)
        if present != status or len(data) != end - start:
            _seen_status.cache_clear()
            raise StorageError(
                f"{printable(self.url)} changed while being read: its size or ETag is another one now; restore it or "
                "start anew"
            )
        return data


def read_whole(url: Url, most: int) -> bytes | None:
    """Return the bytes of an object, or its first `most` + 1, with one request; None if there is no such object.

    Raises:
        StorageError: the network or the service fails.
    """
    with reading_errors(url):
        system = _filesystem(url)
        try:
            return cast(bytes, system.cat_file(system._strip_protocol(url), start=0, end=most + 1))
        except FileNotFoundError:
            return None


Reads: TypeAlias = RangeReads | BucketReads


def reads_of(path: Location) -> Reads:
    """Return the reader of ranges of a file or an object."""
    return BucketReads(path) if is_remote(path) else RangeReads(Path(path))


def open_object(url: Url, status: tuple[int, int] | None = None, block: int = BLOCK) -> BinaryIO:
    """Open an object as a file that can seek. It reads `block` bytes ahead, or more if more are read at once.

    Args:
        url: URL of the object.
        status: the status that it must have; None: that at the opening.
        block: bytes of a request.

    Raises:
        DocumentError, StorageError: as `statuses`; reads raise those of `BucketReads.read`.
    """
    return io.BufferedReader(_RawObject(url, status or statuses([url])[0]), block)


class _RawObject(io.RawIOBase):
    """An object as a file without a buffer."""

    def __init__(self, url: Url, status: tuple[int, int]) -> None:
        self.name, self._reads, self._status, self._position = url, BucketReads(url), status, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._status[0]}[whence]
        if base + offset < 0:
            raise ValueError(f"expected a position from 0 on, got {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._reads.read(self._position, len(buffer), self._status)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _filesystem(url: Url) -> AbstractFileSystem:
    """Return the file system of a URL, which fsspec keeps in each process: one of another process cannot be used.

    Its settings are those of the environment.

    Raises:
        DocumentError: unknown scheme, or its package or credentials are missing.
    """
    import fsspec

    if url.scheme not in fsspec.available_protocols():
        raise unknown_scheme(url, fsspec.available_protocols())
    with opening_errors(url):
        return cast("AbstractFileSystem", fsspec.filesystem(url.scheme))


def _status(url: Url) -> ObjectStatus | None:
    """Return the present status of an object, or None if there is no such object."""
    system = _filesystem(url)
    with opening_errors(url):
        system.invalidate_cache()
        try:
            facts = system.info(system._strip_protocol(url))
        except FileNotFoundError:
            return None
    return _of_facts(facts) if facts["type"] == "file" else None


def _required_status(url: Url) -> ObjectStatus:
    status = _status(url)
    if status is None:
        raise StorageError(f"{printable(url)}: the object is gone; restore it or start anew")
    return status


_seen_status = lru_cache(MOST_SEEN)(_required_status)


def _s3_range(system: Any, url: Url, start: int, end: int) -> tuple[bytes, ObjectStatus]:
    """Return bytes of an object with the status in the same response."""
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(url)
    response = system.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
    try:
        data = sync(system.loop, response["Body"].read)
    finally:
        response["Body"].close()
    size = int(response["ContentRange"].rpartition("/")[2])
    return data, _of_facts({"size": size, "ETag": response["ETag"]})


def _of_facts(facts: dict[str, Any]) -> ObjectStatus:
    value = next((str(facts[name]) for name in VERSIONS if facts.get(name)), "")
    version = (
        int.from_bytes(hashlib.sha256(value.encode()).digest()[:8]) >> 1
    )  # fits in the signed integers of JSON
    return ObjectStatus(int(facts["size"] or 0), version)


def _by_url(base: Url, system: AbstractFileSystem, facts: Any) -> dict[Url, ObjectStatus]:
    """Return the statuses of files among `facts`, by URLs that begin with `base`, in the order of names."""
    root = str(system._strip_protocol(base)).strip("/")
    urls = {}
    for each in facts:
        if each["type"] == "file":
            name = each["name"].lstrip("/")
            urls[Url(base + name.removeprefix(root).lstrip("/"))] = _of_facts(each)
    return dict(sorted(urls.items()))
