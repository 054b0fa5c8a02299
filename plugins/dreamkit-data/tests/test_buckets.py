"""Objects in buckets: S3 by moto's server, and fsspec's file system in memory for the others."""

import errno
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, strategies as st

from bucket_server import Bucket
from dreamkit import DocumentError, StorageError, Url
from dreamkit_data import bucket_reads, buckets
from dreamkit_data.bucket_errors import opening_errors, reading_errors
from dreamkit_data.bucket_reads import BucketReads, open_object, reads_of
from dreamkit_data.buckets import listed, matches, statuses

TEXT = bytes(range(256)) * 8


@pytest.fixture
def memory() -> Any:
    """Return fsspec's file system in memory, which is empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    return system


def test_an_object_is_read_by_ranges_with_one_request_each(bucket: Bucket) -> None:
    bucket.put("a/b", TEXT)
    (status,) = statuses([bucket.url("a/b")])
    assert status.size == len(TEXT) and 0 <= status.version < 2**63
    bucket.requests()
    reads = BucketReads(bucket.url("a/b"))
    assert [reads.read(0, 3, status), reads.read(2000, 9999, status)] == [TEXT[:3], TEXT[2000:]]
    assert [(each.method, each.range) for each in bucket.requests()] == [
        ("GET", "bytes=0-2"),
        ("GET", "bytes=2000-2047"),
    ]
    assert reads.read(2048, 5, status) == reads.read(0, 0, status) == b"" and not bucket.requests()
    assert reads.read(2047, 5) == TEXT[-1:]  # without a status, it is looked up
    assert [each.method for each in bucket.requests()] == ["HEAD", "GET"]


@pytest.mark.parametrize("content", [TEXT[::-1], TEXT + b"more", b"", b"fewer", None])
def test_a_read_of_a_replaced_object_is_an_error_of_its_storage(
    bucket: Bucket, content: bytes | None
) -> None:
    bucket.put("a", TEXT)
    (status,) = statuses([bucket.url("a")])
    reads = BucketReads(bucket.url("a"))
    assert reads.read(1000, 10, status) == TEXT[1000:1010]
    bucket.delete("a") if content is None else bucket.put("a", content)
    reason = "no such object" if content is None else "changed while being read: its size or ETag"
    with pytest.raises(StorageError, match=rf"{bucket.url('a')}:? {reason}.*restore it or start anew"):
        reads.read(1000, 10, status)
    bucket.put("a", TEXT)
    assert reads.read(1000, 10, status) == TEXT[1000:1010]


def test_statuses_of_many_objects_take_one_listing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [bucket.url(f"a/{number}") for number in range(5)]
    for number in range(5):
        bucket.put(f"a/{number}", b"x" * number)
    bucket.requests()
    single = statuses(urls)
    assert [status.size for status in single] == [0, 1, 2, 3, 4] and len(set(single)) == 5
    assert [each.method for each in bucket.requests()] == ["HEAD"] * 5
    monkeypatch.setattr(buckets, "MOST_SINGLE", 4)
    assert statuses(urls) == single
    assert [(each.method, "list-type=2" in each.path) for each in bucket.requests()] == [("GET", True)]
    with pytest.raises(
        DocumentError, match=r"a/7: no such object; 2 of 7 objects are missing; correct the path"
    ):
        statuses([*urls, bucket.url("a/7"), bucket.url("a/8")])


def test_folders_and_globs_name_objects(bucket: Bucket) -> None:
    for key in ("a/1.tar", "a/2.tar", "a/.3.tar", "a/b/4.tar", "a/b.txt", "5.tar"):
        bucket.put(key, key.encode())
    url = bucket.url
    assert list(listed(url("a/"))) == [url("a/.3.tar"), url("a/1.tar"), url("a/2.tar"), url("a/b.txt")]
    assert list(listed(url(""))) == [url("5.tar")] and listed(url("c/")) == {}
    for pattern, names in {
        "a/*.tar": ["a/1.tar", "a/2.tar"],
        "a/.*": ["a/.3.tar"],
        "a/[2-9].tar": ["a/2.tar"],
        "a/?.tar": ["a/1.tar", "a/2.tar"],
        "*/*/*.tar": ["a/b/4.tar"],
        "a/*.zip": [],
    }.items():
        assert matches(url(pattern)) == [url(name) for name in names], pattern
    assert set(matches(url("**/*.tar"))) >= {url("a/1.tar"), url("a/b/4.tar")}
    assert statuses([url("a/1.tar")]) == [listed(url("a/"))[url("a/1.tar")]]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 700)),
            st.tuples(st.just("seek"), st.integers(0, 2500)),
            st.tuples(st.just("back"), st.integers(0, 2048)),
        ),
        max_size=20,
    ),
    st.integers(1, 3000),
)
def test_an_open_object_is_like_a_file(calls: list[tuple[str, int]], block: int) -> None:
    fsspec.filesystem("memory").pipe_file("/open", TEXT)
    with open_object(Url("memory://open"), block=block) as file, io.BytesIO(TEXT) as model:
        for name, number in calls:
            for each in (file, model):
                if name == "seek":
                    each.seek(number)
                elif name == "back":
                    each.seek(-number, io.SEEK_END)
            if name == "read":
                assert file.read(number) == model.read(number)
            assert file.tell() == model.tell()


def test_an_open_object_is_read_in_blocks(bucket: Bucket) -> None:
    bucket.put("a", TEXT)
    bucket.requests()
    with open_object(bucket.url("a"), block=512) as file:
        assert b"".join(iter(lambda: file.read(100), b"")) == TEXT
    assert [each.range for each in bucket.requests()] == [
        "",
        *(f"bytes={start}-{start + 511}" for start in range(0, 2048, 512)),
    ]


def test_other_file_systems_are_read_with_their_status_once(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/a/1.tar", TEXT)
    url = Url("memory://a/1.tar")
    assert matches(Url("memory://a/*.tar")) == [url] == list(listed(Url("memory://a/")))
    (status,) = statuses([url])
    assert [status] == list(listed(Url("memory://a/")).values())
    looked_up = []
    info = type(memory).info
    monkeypatch.setattr(
        type(memory), "info", lambda self, path, **kw: looked_up.append(path) or info(self, path, **kw)
    )
    bucket_reads._seen_status.cache_clear()
    assert [reads_of(url).read(number, 2, status) for number in range(9)] == [
        TEXT[n : n + 2] for n in range(9)
    ]
    assert looked_up == ["/a/1.tar"]
    memory.pipe_file("/a/1.tar", TEXT[::-1])
    (changed,) = statuses([url])
    assert BucketReads(url).read(0, 3, changed) == TEXT[:-4:-1]
    with pytest.raises(StorageError, match="changed while being read"):
        BucketReads(url).read(0, 3, status)


def test_local_paths_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    assert reads_of(tmp_path / "a").read(3, 4) == TEXT[3:7]
    assert BucketReads(Url(f"file://{tmp_path}/a")).read(3, 4) == TEXT[3:7]
    assert list(listed(Url(f"file://{tmp_path}/"))) == [f"file://{tmp_path}/a"]


def test_threads_and_copies_read_at_once(bucket: Bucket) -> None:
    bucket.put("a", TEXT)
    (status,) = statuses([bucket.url("a")])
    reads = [pickle.loads(pickle.dumps(BucketReads(bucket.url("a")))) for _ in range(3)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: reads[n % 3].read(n, 7, status), range(100)))
    assert results == [TEXT[n : n + 7] for n in range(100)]


def test_threads_that_look_objects_up_never_end(bucket: Bucket) -> None:
    # One that ends holds locks of OpenSSL for a moment, in which no process may be forked.
    urls = [bucket.url(f"{number}") for number in range(40)]
    for number in range(40):
        bucket.put(f"{number}", b"")
    names: list[set[str]] = []
    for _ in range(3):
        statuses(urls)
        names.append({thread.name for thread in threading.enumerate() if "dreamkit-bucket" in thread.name})
    assert names[0] == names[1] == names[2] and 0 < len(names[0]) <= buckets.THREADS


def test_missing_buckets_credentials_and_access_are_errors_at_the_start(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a/1.tar", TEXT)
    for url, reason in {
        "s3://no-such-bucket/a.tar": "no such bucket; correct the path",
        "s3://no-such-bucket/*.tar": "no such bucket; correct the path",
        "s3://no-such-bucket/": "no such bucket; correct the path",
        bucket.url("a"): "no such object; correct the path of the data set; the URL of a folder ends with /",
        bucket.url("a/2.tar"): "no such object; correct the path of the data set$",
        "s4://bucket/a.tar": "unknown scheme 's4'; known: .*, s3",
        "s3://a!/a.tar": "Invalid bucket name .*; correct the path",
        "github://a/b": "missing .* required positional arguments.*; correct the path",
        "httsp://bucket/a.tar": "unknown scheme 'httsp'; did you mean 'https'",
    }.items():
        look = listed if url.endswith("/") else matches if "*" in url else lambda each: statuses([each])
        with pytest.raises(DocumentError, match=f".*{reason}") as caught:
            look(Url(url))
        assert not isinstance(caught.value, StorageError)
    for method, look in {
        "HEAD": lambda: statuses([bucket.url("a/1.tar")]),
        "GET": lambda: listed(bucket.url("a/")),
    }.items():
        with (
            bucket.server.answers(method=method, status=403, code="AccessDenied"),
            pytest.raises(
                DocumentError, match=r"PermissionError.*AWS_PROFILE.*FSSPEC_S3_ANON=true.*AWS_ENDPOINT_URL"
            ),
        ):
            look()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DocumentError, match=r"Unable to locate credentials; set AWS_PROFILE"):
        statuses([bucket.url("a/1.tar")])
    monkeypatch.setenv("AWS_PROFILE", "absent")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DocumentError, match=r"profile \(absent\) could not be found; set AWS_PROFILE"):
        statuses([bucket.url("a/1.tar")])


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("hf", "hf")])
def test_a_missing_package_is_named_with_its_extra(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(url: str, **_: object) -> None:
        raise ImportError("Install something")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(DocumentError, match=rf"pip install 'dreamkit-data\[{extra}\]'"):
        statuses([Url(f"{scheme}://bucket/a")])


@pytest.mark.parametrize(
    ("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (403, "ExpiredToken"), (404, "NoSuchKey")]
)
def test_a_failure_of_the_service_in_a_run_is_an_error_of_its_storage(
    bucket: Bucket, status: int, code: str
) -> None:
    bucket.put("a", TEXT)
    (present,) = statuses([bucket.url("a")])
    bucket.requests()
    with bucket.server.answers(method="GET", status=status, code=code), pytest.raises(StorageError):
        BucketReads(bucket.url("a")).read(0, 3, present)
    assert len(bucket.requests()) == 1  # the environment of the tests has no further attempts
    assert BucketReads(bucket.url("a")).read(0, 3, present) == TEXT[:3]


def test_too_many_open_files_are_no_error_of_the_storage(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/a", TEXT)
    (status,) = statuses([Url("memory://a")])

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(type(memory), "cat_file", fail)
    with pytest.raises(OSError, match="Too many open files") as caught:
        BucketReads(Url("memory://a")).read(0, 3, status)
    assert not isinstance(caught.value, DocumentError)


@pytest.mark.parametrize("errors", [opening_errors, reading_errors])
@pytest.mark.parametrize("kind", [OSError, ValueError, TimeoutError])
def test_credentials_in_addresses_of_services_are_not_shown(errors: Any, kind: type[Exception]) -> None:
    address = "http://me:hunter2@host:9/bucket?X-Amz-Signature=hunter2&X-Amz-Date=1"
    with pytest.raises(DocumentError) as caught, errors(Url("s3://bucket/a")):
        raise kind(f"cannot connect to {address}")
    assert "host:9/bucket" in str(caught.value) and "hunter2" not in str(caught.value)
