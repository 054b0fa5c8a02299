"""Objects in buckets, by their URLs: their file systems, statuses and listings."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from dreamkit import DocumentError, Location, StorageError, Url, count, printable
from dreamkit_data.bucket_errors import missing_reason, opening_errors, unknown_scheme

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from typing_extensions import TypeIs

S3: Final = ("s3", "s3a")
THREADS: Final = 16  # requests at once
MOST_SINGLE: Final = 64  # objects of a folder that are looked up one by one; for more, the folder is listed
STATUS_REQUESTS: Final = 3  # for an object that is indexed: before, at the opening and after, to see changes
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
        system, path = filesystem(folder)
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
        system, path = filesystem(pattern)
        system.invalidate_cache()
        facts = system.glob(path, detail=True).values()
        return list(_by_url(start, filesystem(start)[1], facts))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process. A forked process has none of its parent's, and starts its own.

    They never end: a thread that ends holds locks of OpenSSL, after it was joined. In a process that is forked at that
    moment, OpenSSL would wait for them forever.
    """
    return ThreadPoolExecutor(THREADS, "dreamkit-bucket")


def filesystem(url: Url) -> tuple[AbstractFileSystem, str]:
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
        system, path = filesystem(url)
        system.invalidate_cache()
        try:
            facts = system.info(path)
        except FileNotFoundError as error:
            if missing_reason(error) == "no such bucket":
                raise
            return None
    return status_of(facts) if facts["type"] == "file" else None


def required_status(url: Url) -> ObjectStatus:
    status = _status(url)
    if status is None:
        raise StorageError(f"{printable(url)}: no such object; restore it or start anew")
    return status


def status_of(facts: Mapping[str, Any]) -> ObjectStatus | None:
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
    files = [each for each in facts if each["type"] == "file" and not each["name"].endswith("/")]
    urls = [Url(start + each["name"].strip("/").removeprefix(root).strip("/")) for each in files]
    return dict(sorted(zip(urls, map(status_of, files), strict=True)))


def _folder(url: Url) -> Url:
    """Return the URL of the folder of an object, which ends with `/`."""
    return Url(url.rpartition("/")[0] + "/")
