"""Objects in buckets, by their URLs. This is the only file that imports fsspec."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from glob import has_magic
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TypeAlias, cast

from dreamkit import DocumentError, Location, RangeReads, StorageError, Url, count, printable
from dreamkit_data.bucket_errors import missing_reason, opening_errors, reading_errors, unknown_scheme

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from typing_extensions import TypeIs

S3: Final = ("s3", "s3a")
BLOCK: Final = 2**23  # bytes of a request, when an object is read in order
THREADS: Final = 16  # requests at once
MOST_SINGLE: Final = 64  # objects of a folder that are looked up one by one; for more, the folder is listed
MOST_SEEN: Final = 2**16  # objects of which a process remembers the status
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


def is_remote(path: Location) -> TypeIs[Url]:
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
        folders[_folder(url)].append(url)
    known: dict[Url, ObjectStatus | None] = {}
    single: list[Url] = []
    for folder, members in folders.items():
        if len(members) > MOST_SINGLE:
            known.update(listed(folder))
            members = [url for url in members if url in known and known[url] is None]
        single += members
    known.update(zip(single, _pool(os.getpid()).map(_status, single), strict=True))
    missing = [url for url in urls if known.get(url) is None]
    if missing:
        some = f"; {len(missing):,} of {count(f'{len(urls):,}', 'object')} are missing" if missing[1:] else ""
        hint = "" if "." in missing[0].name else "; the URL of a folder ends with /"
        raise DocumentError(
            f"{printable(missing[0])}: no such object{some}; correct the path of the data set{hint}"
        )
    return [cast(ObjectStatus, known[url]) for url in urls]


def listed(folder: Url) -> dict[Url, ObjectStatus | None]:
    """Return the objects directly in a folder, whose URL ends with `/`, by name.

    Their statuses are None where the listing of a service has no sizes. Listing takes a request for 1,000 objects. A
    folder that is missing has no objects.

    Raises:
        DocumentError, StorageError: as `statuses`.
    """
    with opening_errors(folder):
        system, path = _filesystem(folder)
        system.invalidate_cache()
        try:
            facts = system.ls(path, detail=True)
        except FileNotFoundError as error:
            if missing_reason(error) == "no such bucket":
                raise
            return {}
    return _by_url(folder, path, facts)


def matches(pattern: Url) -> list[Url]:
    """Return the objects that a glob names, by name: `*`, `?`, `[ab]`, `**`. As in Python, `*` names no hidden ones.

    Raises:
        DocumentError, StorageError: as `statuses`.
    """
    folder, last = _folder(pattern), pattern.name
    if not has_magic(folder) and "**" not in last:
        named = [url for url in listed(folder) if fnmatchcase(url.name, last)]
        return [url for url in named if last.startswith(".") or not url.name.startswith(".")]
    start = Url(f"{pattern.scheme}://")
    with opening_errors(pattern):
        system, path = _filesystem(pattern)
        system.invalidate_cache()
        facts = system.glob(path, detail=True).values()
        return list(_by_url(start, _filesystem(start)[1], facts))


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
            data, present = self._range(start, end, status)
        if present != status or len(data) != end - start:
            raise StorageError(
                f"{printable(self.url)} changed while being read: its size or ETag is another one now; restore it or "
                "start anew"
            )
        return data

    def _range(self, start: int, end: int, status: tuple[int, int]) -> tuple[bytes, ObjectStatus | None]:
        """Return bytes of the object and its status, which is looked up again if it is not `status`."""
        system, path = _filesystem(self.url)
        if self.url.scheme not in S3:
            if _seen_status(self.url) != status:
                _seen_status.cache_clear()
            return system.cat_file(path, start=start, end=end), _seen_status(self.url)
        try:
            return _s3_range(system, path, start, end)
        except OSError as error:
            if error.errno == errno.EINVAL and _required_status(self.url).size < end:
                return b"", None  # it ends before the range now
            raise


def read_whole(url: Url, most: int) -> bytes | None:
    """Return the bytes of an object, or its first `most` + 1, with one request; None if there is no such object.

    Raises:
        StorageError: the network or the service fails.
    """
    with reading_errors(url):
        system, path = _filesystem(url)
        try:
            return cast(bytes, system.cat_file(path, start=0, end=most + 1))
        except FileNotFoundError as error:
            if missing_reason(error) == "no such bucket":
                raise
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and _required_status(url).size == 0:
                return b""  # an empty object has no range
            raise


Reads: TypeAlias = RangeReads | BucketReads


def reads_of(path: Location) -> Reads:
    """Return the reader of ranges of a file or an object."""
    return BucketReads(path) if is_remote(path) else RangeReads(path)


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


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process. A forked process has none of its parent's, and starts its own.

    They never end: a thread that ends holds locks of OpenSSL, after it was joined. In a process that is forked at that
    moment, OpenSSL would wait for them forever.
    """
    return ThreadPoolExecutor(THREADS, "dreamkit-bucket")


def _filesystem(url: Url) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL, and the path in it. Its settings are those of the environment.

    fsspec keeps file systems in each process. One of another process cannot be used, so none is held here.

    Raises:
        DocumentError: unknown scheme, or its package or credentials are missing.
    """
    import fsspec
    from fsspec.config import conf

    if url.scheme not in fsspec.available_protocols():
        raise unknown_scheme(url)
    settings: dict[str, Any] = {}
    if url.scheme in S3 and not any("config_kwargs" in conf.get(name, {}) for name in S3):
        settings = {"config_kwargs": {"max_pool_connections": THREADS}}  # botocore has 10
    with opening_errors(url):
        system, path = fsspec.url_to_fs(str(url), **settings)
    if url.scheme in S3:
        system.retries = (
            1  # botocore repeats requests, up to AWS_MAX_ATTEMPTS, and dreamkit those of a document
        )
    return system, path


def _status(url: Url) -> ObjectStatus | None:
    """Return the present status of an object, or None if its bucket has no such object."""
    with opening_errors(url):
        system, path = _filesystem(url)
        system.invalidate_cache()
        try:
            facts = system.info(path)
        except FileNotFoundError as error:
            if missing_reason(error) == "no such bucket":
                raise
            return None
    return _of_facts(facts) if facts["type"] == "file" else None


def _required_status(url: Url) -> ObjectStatus:
    status = _status(url)
    if status is None:
        raise StorageError(f"{printable(url)}: no such object; restore it or start anew")
    return status


_seen_status = lru_cache(MOST_SEEN)(_required_status)


def _s3_range(system: Any, path: str, start: int, end: int) -> tuple[bytes, ObjectStatus | None]:
    """Return bytes of an object with the status in the same response."""
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(path)
    response = system.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
    try:
        data = sync(system.loop, response["Body"].read)
    finally:
        response["Body"].close()
    size = int(response["ContentRange"].rpartition("/")[2])
    return data, _of_facts({"size": size, "ETag": response["ETag"]})


def _of_facts(facts: Mapping[str, Any]) -> ObjectStatus | None:
    """Return the status in the facts about an object; None if they have no size."""
    if facts.get("size") is None:
        return None
    value = next((facts[name] for name in VERSIONS if facts.get(name)), "")
    if isinstance(value, datetime):
        value = value.timestamp()  # as listings of the same service have it
    version = (
        int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:8]) >> 1
    )  # a signed integer of 64 bits
    return ObjectStatus(int(facts["size"]), version)


def _by_url(start: Url, root: str, facts: Iterable[Mapping[str, Any]]) -> dict[Url, ObjectStatus | None]:
    """Return the statuses of the files among `facts`, whose names begin with `root`, in the order of their URLs.

    The URLs begin with `start`, which is `root` as the user wrote it.
    """
    root = root.strip("/")
    files = [each for each in facts if each["type"] == "file"]
    urls = [Url(start + each["name"].strip("/").removeprefix(root).strip("/")) for each in files]
    return dict(sorted(zip(urls, map(_of_facts, files), strict=True)))


def _folder(url: Url) -> Url:
    """Return the URL of the folder of an object, which ends with `/`."""
    return Url(url.rpartition("/")[0] + "/")
