"""Tables, pages of OBELICS and documents of MMC4 in buckets, read from moto's server of S3."""

import gzip
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO
from weakref import ReferenceType, ref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, strategies as st

from bucket_server import Bucket
from dreamkit import Document, DocumentError, StorageError, Url
from dreamkit.data.fingerprint import document_hash
from dreamkit_data import bucket_reads, remote_images
from dreamkit_data.mmc4 import MMC4, MMC4Config
from dreamkit_data.obelics import Obelics, ObelicsConfig
from dreamkit_data.table import Table, TableConfig
from dreamkit_digits.documents import Digits
from runs import training_losses
from table_files import png, write_obelics, write_pairs
from tar_files import write_mmc4, write_mmc4_lines

DOCUMENTS = [
    Digits(Digits.Config(documents={"reading": 1.0, "drawing": 1.0, "sums": 2.0}))[n] for n in range(12)
]
TSV = "image\tcaption\n0.png\tzero\n1.png\tone\n2.png\ttwo\n"


def hashes(documents: Iterable[Document]) -> list[str]:
    return [document_hash(each) for each in documents]


def gets(bucket: Bucket) -> list[tuple[str, str]]:
    """Return path and range of each request for content since the last call."""
    return [
        (each.path.removeprefix(f"/{bucket.name}/"), each.range)
        for each in bucket.requests()
        if each.method == "GET" and "list-type" not in each.path
    ]


def put_images(bucket: Bucket, prefix: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        bucket.put(f"{prefix}{number}.png", png(number))


@pytest.fixture
def pairs(tmp_path: Path, bucket: Bucket) -> Path:
    """Return a folder of two Parquet files with three row groups each, which are also in the bucket after `pairs/`."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(2):
        write_pairs(folder / f"x-{number}.parquet", range(12 * number, 12 * number + 12), rows=4)
    bucket.upload(folder, "pairs/")
    bucket.requests()
    return folder


@pytest.mark.parametrize("pattern", ["pairs/", "pairs/x-*.parquet", "pairs/x-{0,1}.parquet"])
def test_parquet_in_a_bucket_has_the_rows_of_a_folder(bucket: Bucket, pairs: Path, pattern: str) -> None:
    data, local = Table(TableConfig(bucket.url(pattern))), Table(TableConfig(pairs))
    assert hashes(data) == hashes(local) and len(data) == 24
    assert data[13].name == f"s3://{bucket.name}/pairs/x-1.parquet:1"
    assert data.fingerprint() == local.fingerprint()


def test_a_row_group_is_one_request(bucket: Bucket, tmp_path: Path) -> None:
    """Columns between those that are read are few bytes here, and skipped where they are many."""
    rows = 40
    images = [{"bytes": png(n) + os.urandom(20_000), "path": "x"} for n in range(rows)]
    columns = {
        "first": [os.urandom(9000) for _ in range(rows)],
        "image": images,
        "between": ["x"] * rows,
        "caption": [f"a {n}" for n in range(rows)],
        "last": [os.urandom(9000) for _ in range(rows)],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=10)
    bucket.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    path = bucket.url("a.parquet")
    Table(TableConfig(path))
    bucket.requests()
    data = Table(TableConfig(path))
    assert [request for _, request in gets(bucket)] == ["bytes=0-3"]
    data[0]
    footer, group = gets(bucket)
    size = (tmp_path / "a.parquet").stat().st_size
    assert footer[1] == f"bytes={size - 2**16}-{size - 1}"
    first, last = map(int, group[1].removeprefix("bytes=").split("-"))
    assert 200_000 < last - first < 220_000
    for index, requests in ((9, 0), (10, 1), (39, 1), (35, 0), (0, 0)):
        assert data[index].text == f"a {index}"
        assert len(gets(bucket)) == requests


def test_what_was_read_of_an_object_is_freed_after_decoding(
    bucket: Bucket, tmp_path: Path, monkeypatch: Any
) -> None:
    files: list[ReferenceType[BinaryIO]] = []

    def opened(*args: Any, **settings: Any) -> BinaryIO:
        file = bucket_reads.open_object(*args, **settings)
        files.append(ref(file))
        return file

    monkeypatch.setattr("dreamkit_data.group_decoder.open_object", opened)
    for number in range(8):
        columns = {"image": [png(number)], "caption": ["x"]}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    bucket.upload(tmp_path)
    data = Table(TableConfig(bucket.url("*.parquet")))
    for index in range(8):
        assert data.rows[index].values["image"] == png(index)
    assert len(files) == 8
    # A file lives as long as pyarrow's reader, which holds what was read. Another thread may still free the last one.
    assert sum(each() is not None for each in files) <= 1


def test_threads_and_processes_read_different_row_groups(bucket: Bucket, pairs: Path) -> None:
    data, expected = Table(TableConfig(bucket.url("pairs/"))), hashes(Table(TableConfig(pairs)))
    assert hashes([data[0]]) == expected[:1]  # this process has open files before the fork
    with get_context("fork").Pool(1) as pool:
        assert pool.map(hashes, [list(data)]) == [expected]
    with ThreadPoolExecutor(8) as pool:
        assert hashes(pool.map(data.__getitem__, range(24))) == expected
    with get_context("fork").Pool(1, initializer=keep, initargs=(data,)) as pool:
        assert pool.apply(read_kept) == expected


def keep(data: Table) -> None:
    global KEPT
    KEPT = data


def read_kept() -> list[str]:
    return hashes(KEPT[index] for index in range(len(KEPT)))


def test_a_large_row_group_is_read_in_blocks(bucket: Bucket, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("dreamkit_data.group_decoder.LARGE", 2**16)
    monkeypatch.setattr("dreamkit_data.group_decoder.BLOCK", 2**18)
    images = [png(n) + os.urandom(10_000) for n in range(100)]
    columns = {"image": images, "caption": ["a"] * 100}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", data_page_size=2**15)
    bucket.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    data = Table(TableConfig(bucket.url("a.parquet")))
    bucket.requests()
    assert [data.rows[index].values["image"] for index in range(100)] == images
    ranges = [request for _, request in gets(bucket)]
    assert len(ranges) < 12


def test_an_object_of_parquet_that_changes_is_a_storage_error(bucket: Bucket, pairs: Path) -> None:
    data = Table(TableConfig(bucket.url("pairs/")))
    bucket.put("pairs/x-0.parquet", (pairs / "x-1.parquet").read_bytes())
    with pytest.raises(StorageError, match=r"x-0\.parquet.* changed while being read: its size or ETag"):
        data[0]
    assert data[12].name.endswith("x-1.parquet:0")
    assert hashes(Table(TableConfig(bucket.url("pairs/")))[n] for n in range(12)) == hashes(
        Table(TableConfig(pairs))[n] for n in range(12, 24)
    )


def test_a_failing_service_is_no_damage(bucket: Bucket, pairs: Path) -> None:
    data = Table(TableConfig(bucket.url("pairs/")))
    with (
        bucket.server.answers(method="GET", status=503, code="SlowDown"),
        pytest.raises(StorageError, match=r"x-0\.parquet: .*SlowDown"),
    ):
        data[0]
    assert data[0].name.endswith("x-0.parquet:0")
    bucket.put("pairs/x-0.parquet", b"PAR1, and nothing more")
    with pytest.raises(DocumentError, match=r"x-0\.parquet: cannot read the file as Parquet") as error:
        Table(TableConfig(bucket.url("pairs/")))
    assert not isinstance(error.value, StorageError)


def test_pages_of_obelics_are_read_with_images_by_path(bucket: Bucket, tmp_path: Path) -> None:
    documents = [[3, "A.\n\nB.", 4, None, "C."], ["D.", 6], ["E.", 7, 8]]
    file = write_obelics(tmp_path / "a.parquet", documents, rows=2)
    bucket.upload(tmp_path, "obelics/")
    data = Obelics(ObelicsConfig(bucket.url("obelics/*.parquet")))
    assert hashes(data) == hashes(Obelics(ObelicsConfig(file)))
    columns = {"images": [["images/3.png", None], ["9.png", None]], "texts": [[None, "A."], [None, "B."]]}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    bucket.put("b/b.parquet", (tmp_path / "b.parquet").read_bytes())
    put_images(bucket, "b/images/", [3])
    paths = Obelics(ObelicsConfig(bucket.url("b/b.parquet")))
    bucket.requests()
    assert len(paths[0].images) == 1
    assert ("b/images/3.png", f"bytes=0-{remote_images.MOST_IMAGE}") in gets(bucket)
    with pytest.raises(DocumentError, match=r"b\.parquet:1: images\[0\]: .*no such object: '9\.png'"):
        paths[1]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_text_tables_are_read_with_their_images(bucket: Bucket, tmp_path: Path, packed: str) -> None:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(packed, bytes)
    bucket.put(f"t/a.tsv{packed}", pack(TSV.encode()))
    put_images(bucket, "t/", range(3))
    (tmp_path / "a.tsv").write_text(TSV)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    expected = hashes(Table(TableConfig(tmp_path)))
    path = bucket.url(f"t/a.tsv{packed}")
    for config in (
        TableConfig(path),
        TableConfig(path, images=tmp_path),
        TableConfig(tmp_path, images=bucket.url("t")),
        TableConfig(bucket.url("t/"), images=bucket.url("t/")),
    ):
        assert hashes(Table(config)) == expected
    data = Table(TableConfig(path))
    bucket.requests()
    assert data[2].name == f"{path}:4"
    requests = [("t/2.png", f"bytes=0-{remote_images.MOST_IMAGE}")]
    assert gets(bucket) == ([("t/a.tsv", "bytes=35-44")] if not packed else []) + requests
    bucket.requests()
    Table(TableConfig(path))
    assert [name for name, _ in gets(bucket)] == [f"t/a.tsv{packed}"]  # its first bytes
    bucket.put(f"t/a.tsv{packed}", pack(TSV.replace("zero", "none").encode()))
    if not packed:
        with pytest.raises(StorageError, match=r"a\.tsv changed while being read"):
            data[0]
    assert Table(TableConfig(path))[0].text == "none"


def test_packed_objects_that_are_damaged_are_named(bucket: Bucket) -> None:
    bucket.put("a.tsv.zst", zstandard.compress(TSV.encode())[:-2])
    with pytest.raises(
        DocumentError, match=r"s3://.*a\.tsv\.zst: damaged Zstandard file: the file ends inside"
    ):
        Table(TableConfig(bucket.url("a.tsv.zst")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret.png", "expected a path inside s3://.*/t/, got '../secret.png'"),
        ("a/../../secret.png", "expected a path inside"),
        ("/secret.png", "expected a path inside"),
        ("a\\..\\secret.png", "expected a path inside"),
        ("x" * 1025, "a name of 1,025 bytes"),
        ("a.png?versionId=1", "'a.png\\?versionId=1'.*: expected a URL without a query"),
        ("a.png#", "no such object: 'a.png#'"),
        ("s3://other/a.png", "got the address"),
        ("file:///etc/passwd", "got the address"),
        ("empty.png", "expected an image, got an empty file"),
        ("text.png", "cannot read the image"),
        ("large.png", "expected at most 1,000 bytes, got more"),
        ("missing.png", "no such object: 'missing.png'"),
    ],
)
def test_names_that_lead_out_of_a_bucket_and_bad_objects_are_bad_samples(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(remote_images, "MOST_IMAGE", 1000)
    for key, content in (("empty", b""), ("text", b"text"), ("large", b"x" * 5000)):
        bucket.put(f"t/{key}.png", content)
    bucket.put("secret.png", png(0))
    bucket.put("t/a.tsv", f"image\tcaption\n{name}\tA.\n".encode())
    data = Table(TableConfig(bucket.url("t/a.tsv")))
    with pytest.raises(DocumentError, match=message) as error:
        data[0]
    assert not isinstance(error.value, StorageError)
    assert re.match(r"s3://[^:]*/t/a\.tsv:2: image", str(error.value))


def test_tars_of_mmc4_are_read(bucket: Bucket, tmp_path: Path) -> None:
    write_mmc4(tmp_path, [DOCUMENTS[:6], DOCUMENTS[6:]])
    bucket.upload(tmp_path, "mmc4/")
    data = MMC4(MMC4Config(bucket.url("mmc4/*.tar")))
    assert hashes(data[n] for n in range(12)) == hashes(DOCUMENTS)
    bucket.requests()
    data[7]
    assert len(gets(bucket)) == 1


@pytest.mark.parametrize("suffix", ["", ".zip", ".gz", ".zst"])
def test_lines_of_mmc4_are_read_with_their_images(bucket: Bucket, tmp_path: Path, suffix: str) -> None:
    file = write_mmc4_lines(tmp_path / f"docs_0_v2.jsonl{suffix}", DOCUMENTS)
    bucket.upload(tmp_path, "m/")
    bucket.upload(tmp_path / "docs_0_v2_images", "m/docs_0_v2_images/")
    path = bucket.url(f"m/docs_0_v2.jsonl{suffix}")
    local = MMC4(MMC4Config(file))
    for config in (
        MMC4Config(path),
        MMC4Config(path, images=bucket.url("m/docs_0_v2_images")),
        MMC4Config(path, images=tmp_path / "docs_0_v2_images"),
        MMC4Config(file, images=bucket.url("m/docs_0_v2_images/")),
        MMC4Config(path, max_images=1),
    ):
        data, expected = MMC4(config), MMC4(replace(config, path=file, images=None))
        assert hashes(data[n] for n in range(len(data))) == hashes(expected[n] for n in range(len(local)))
    data = MMC4(MMC4Config(path))
    bucket.requests()
    images = len(data[0].images)
    assert len(gets(bucket)) == images + (not suffix)
    assert MMC4(MMC4Config(path))[0].name == f"{path}:1"
    assert [
        request for request in bucket.requests() if request.method == "GET" and "list-type" in request.path
    ] == []


def test_images_of_mmc4_that_are_not_in_the_bucket_are_left_out(bucket: Bucket) -> None:
    records = [
        {
            "text_list": ["a", "b"],
            "image_info": [{"image_name": f"{n}.png", "matched_text_index": 0} for n in names],
        }
        for names in ([0, 1], [2], [0])
    ]
    bucket.put("a.jsonl", b"".join(json.dumps(record).encode() + b"\n" for record in records))
    put_images(bucket, "images/", [0])
    data = MMC4(MMC4Config(bucket.url("a.jsonl")))
    assert [data[n].name[-1] for n in range(len(data))] == ["1", "3"]
    assert data.notes == [
        f"{bucket.url('a.jsonl')}: left out: 2 images not in its folder, such as a.jsonl:1: 1.png",
        f"{bucket.url('a.jsonl')}: left out: 1 document without an image, such as a.jsonl:2",
    ]
    assert len(data[0].images) == 1
    bucket.delete("images/0.png")
    with pytest.raises(
        DocumentError, match=r"a\.jsonl:1: expected an image in s3://.*/images/, got none"
    ) as error:
        data[0]
    assert not isinstance(error.value, StorageError)
    with pytest.raises(
        DocumentError, match="expected a folder of images, got none called b_images or images"
    ):
        bucket.put("c/b.jsonl", json.dumps(records[0]).encode())
        MMC4(MMC4Config(bucket.url("c/b.jsonl")))
    bad = {**records[0], "image_info": [{"image_name": "../0.png", "matched_text_index": 0}]}
    bucket.put("d.jsonl", json.dumps(bad).encode())
    with pytest.raises(DocumentError, match=r"d\.jsonl:1: .*expected a name without a folder"):
        MMC4(MMC4Config(bucket.url("d.jsonl"), images=bucket.url("images")))


def test_a_bucket_that_is_gone_is_not_a_missing_image(bucket: Bucket) -> None:
    assert bucket_reads.read_whole(bucket.url("a.png"), 10) is None
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a\.png: "):
        bucket_reads.read_whole(Url("s3://no-such-bucket/a.png"), 10)


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["..", ".", "a", "/", "\\", "?x=", "#", "%2e"])).map("".join)
)
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    requested: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_images, "read_whole", lambda url, _: requested.append(str(url)))
        for folder in ("s3://b/t", "s3://b/t/"):
            try:
                assert remote_images.read_image(Url(folder), name, "here") is None
            except DocumentError as error:
                assert str(error).startswith("here: ") and "\n" not in str(error)
    for url in requested:
        assert url == f"s3://b/t/{name}" and ".." not in url.split("/") and "?x=" not in url


def test_a_recipe_of_parquet_in_a_bucket_is_trained(bucket: Bucket, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"extends: digits/stage2\ndata:\n  - {{name: table, path: 's3://{bucket.name}/pairs/x-*.parquet'}}\n"
    )
    losses = []
    for workers in (0, 2):
        settings = ("train.steps=2", "train.log_every=1", "train.batch_size=8", f"train.workers={workers}")
        losses.append(training_losses(str(recipe), tmp_path / f"run{workers}", settings))
    assert losses[0] == losses[1] and len(losses[0]) == 2
