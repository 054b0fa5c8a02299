"""Reads of objects in buckets: by ranges, whole, and as files."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, Final, TypeAlias, cast

from dreamkit import Location, RangeReads, StorageError, Url, printable
from dreamkit_data.bucket_errors import missing_reason, reading_errors
from dreamkit_data.buckets import (
    S3,
    ObjectStatus,
    filesystem,
    is_remote,
    required_status,
    status_of,
    statuses,
)

DELAYS: Final = (1, 2, 4, 8)  # seconds between reads for an index, as between those of a document
BLOCK: Final = 2**23  # bytes of a request, when an object is read in order
MOST_SEEN: Final = 2**16  # objects of which a process remembers the status

_seen_status = lru_cache(MOST_SEEN)(required_status)


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
            status = required_status(self.url) if status is None else status
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
        system, path = filesystem(self.url)
        if self.url.scheme not in S3:
            if _seen_status(self.url) != status:
                _seen_status.cache_clear()
            return system.cat_file(path, start=start, end=end), _seen_status(self.url)
        try:
            return _s3_range(system, path, start, end)
        except OSError as error:
            if error.errno == errno.EINVAL and required_status(self.url).size < end:
                return b"", None  # it ends before the range now
            raise


def read_whole(url: Url, most: int) -> bytes | None:
    """Return the bytes of an object, or its first `most` + 1, with one request; None if there is no such object.

    Raises:
        StorageError: the network or the service fails.
    """
    with reading_errors(url):
        system, path = filesystem(url)
        try:
            return cast(bytes, system.cat_file(path, start=0, end=most + 1))
        except FileNotFoundError as error:
            if missing_reason(error) == "no such bucket":
                raise
            return None
        except OSError as error:
            if error.errno == errno.EINVAL and required_status(url).size == 0:
                return b""  # an empty object has no range
            raise


Reads: TypeAlias = RangeReads | BucketReads


def reads_of(path: Location) -> Reads:
    """Return the reader of ranges of a file or an object."""
    return BucketReads(path) if is_remote(path) else RangeReads(path)


def patient(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """Return a function that calls `read`, and again while the storage fails: for indexing, which reads for hours."""

    def repeated(start: int, size: int) -> bytes:
        for delay in DELAYS:
            try:
                return read(start, size)
            except StorageError:
                time.sleep(delay)
        return read(start, size)

    return repeated


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
    return data, status_of({"size": size, "ETag": response["ETag"]})
