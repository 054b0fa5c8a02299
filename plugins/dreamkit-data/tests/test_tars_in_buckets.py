"""Tars in buckets, read and indexed from moto's server of S3."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from bucket_server import Bucket
from dreamkit import DocumentError, Registry, StorageError, Url, load_recipe
from dreamkit.cli.app import app
from dreamkit.data import document_reads
from dreamkit.data.document_reads import read_document
from dreamkit_data import bucket_reads, tar_samples
from dreamkit_data.tars import Tars, TarsConfig
from runs import training_losses
from tar_files import digit_metadata, write_img2dataset

SHARDS = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(3)]


def open_tars(path: Any, **settings: Any) -> Tars:
    return Tars(TarsConfig(path, **settings))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three tars of 10 samples, and nothing else."""
    folder = tmp_path / "tars"
    folder.mkdir()
    write_img2dataset(folder, SHARDS)
    for other in folder.glob("*.parquet"):
        other.unlink()
    return folder


@pytest.fixture
def laion(folder: Path, bucket: Bucket) -> Bucket:
    """Return a bucket with these tars after the prefix `laion/`."""
    bucket.upload(folder, "laion/")
    bucket.requests()
    return bucket


def contents(documents: Sequence[Any]) -> list[tuple[str, str, bytes]]:
    """Return the names after the folder, texts and pixels of documents."""
    return [
        (each.name.rpartition("/")[2], each.text, np.asarray(each.images[0].picture).tobytes())
        for each in documents
    ]


@pytest.mark.parametrize(
    "pattern", ["laion/", "laion/*.tar", "laion/{00000..00002}.tar", "*/0000{0,1,2}.tar"]
)
def test_tars_in_a_bucket_are_those_of_a_folder(laion: Bucket, folder: Path, pattern: str) -> None:
    data = open_tars(laion.url(pattern))
    assert contents(list(data)) == contents(list(open_tars(folder)))
    assert data[11].name == f"s3://{laion.name}/laion/00001.tar!000000011"
    assert data.fingerprint() == open_tars(folder).fingerprint()
    assert len(open_tars([laion.url("laion/00000.tar"), folder / "00001.tar"])) == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_read_the_same_documents(laion: Bucket, folder: Path, workers: int) -> None:
    data = open_tars(laion.url("laion/"))
    assert contents([data[3]]) == contents(
        [open_tars(folder)[3]]
    )  # this process has a file system before the fork
    loader = DataLoader(data, batch_size=4, num_workers=workers, collate_fn=contents)  # type: ignore[arg-type]
    for _ in range(2):
        assert [each for batch in loader for each in batch] == contents(list(open_tars(folder)))
    assert contents([data[3]]) == contents([open_tars(folder)[3]])


def test_tars_are_indexed_in_processes(laion: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: 2)
    assert len(open_tars(laion.url("laion/"))) == 30
    gets = [each.path for each in laion.requests() if each.range]
    assert sorted(gets) == [f"/{laion.name}/laion/0000{shard}.tar" for shard in range(3)]


def test_a_document_is_one_request_and_a_second_start_reads_no_object(laion: Bucket) -> None:
    open_tars(laion.url("laion/"))
    laion.requests()
    data = open_tars(laion.url("laion/"))
    assert {each.method for each in laion.requests() if "list-type" not in each.path} == {"HEAD"}
    for number in (0, 29, 15):
        assert data[number].name.endswith(f"{number:09}")
        (request,) = laion.requests()
        assert (request.method, request.status) == ("GET", 206)


def test_an_index_reads_an_object_in_order_in_large_blocks(
    laion: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_samples, "BLOCK", 2**14)
    open_tars(laion.url("laion/00000.tar"))
    size = (folder / "00000.tar").stat().st_size
    ranges = [each.range for each in laion.requests() if each.range]
    assert ranges == [f"bytes={start}-{min(start + 2**14, size) - 1}" for start in range(0, size, 2**14)]


def test_an_object_replaced_under_its_name_and_size_is_indexed_again(
    laion: Bucket, folder: Path, cache: Path
) -> None:
    data = open_tars(laion.url("laion/"))
    assert data[11].text == SHARDS[1][1]["caption"]
    with tarfile.open(folder / "00001.tar") as tar:
        place = tar.getmember("000000011.txt").offset_data
    changed = bytearray((folder / "00001.tar").read_bytes())
    changed[place : place + 1] = b"A"
    laion.put("laion/00001.tar", bytes(changed))
    with pytest.raises(
        StorageError, match=r"00001\.tar changed while being read: its size or ETag is another one"
    ):
        data[11]
    assert data[1].name.endswith("1") and data[29].name.endswith("29")
    laion.requests()
    assert open_tars(laion.url("laion/"))[11].text == "A" + SHARDS[1][1]["caption"][1:]
    assert {each.path for each in laion.requests() if each.range} == {f"/{laion.name}/laion/00001.tar"}
    assert len(list((cache / "indexes").glob("*.npy"))) == 3


def test_an_object_that_changes_while_it_is_indexed_is_an_error(
    laion: Bucket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tar_samples.samples

    def changing(*arguments: Any, **options: Any) -> Any:
        yield from original(*arguments, **options)
        laion.put("laion/00001.tar", (folder / "00002.tar").read_bytes())

    monkeypatch.setattr(tar_samples, "samples", changing)
    with pytest.raises(
        StorageError, match=r"00001\.tar changed while being read: its size or ETag is another one"
    ):
        open_tars(laion.url("laion/00001.tar"))


def test_a_service_that_fails_for_a_moment_is_asked_again(
    laion: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_reads, "DELAYS", (0, 0, 0))
    monkeypatch.setattr(bucket_reads, "DELAYS", (0, 0))
    pattern = laion.url("laion/{00000..00002}.tar")
    with laion.server.answers(method="GET", status=500, code="InternalError", times=2):
        data = open_tars(pattern)
    assert sorted(each.status for each in laion.requests() if each.range) == [206, 206, 206, 500, 500]
    with (
        laion.server.answers(method="GET", status=500, code="InternalError"),
        pytest.raises(StorageError, match=r"00000\.tar: OSError"),
    ):
        open_tars(pattern, direction="read", caption="json:caption")
    laion.requests()
    with laion.server.answers(method="GET", status=503, code="SlowDown", times=3):
        assert read_document(lambda: data[7], "document 7").name.endswith("000000007")
    assert [each.status for each in laion.requests()] == [503, 503, 503, 206]
    with (
        laion.server.answers(method="GET", status=503, code="SlowDown"),
        pytest.raises(StorageError, match=r"s3://.*00000\.tar: OSError: \[Errno 16\] SlowDown"),
    ):
        read_document(lambda: data[7], "document 7")


def test_no_credentials_are_stored(laion: Bucket, cache: Path) -> None:
    data = open_tars(laion.url("laion/"))
    stored = b"".join(file.read_bytes() for file in cache.rglob("*") if file.is_file())
    assert b"laion/00001.tar" in stored
    for secret in (b"hunter2", b"tests"):
        assert secret not in stored
    assert "hunter2" not in json.dumps(data.fingerprint())


@pytest.mark.parametrize(
    "pattern", ["laion/{00000..00004}.tar", "laion/x/", "laion/*.zip", "laion/00009.tar"]
)
def test_missing_objects_are_errors_at_the_start(laion: Bucket, pattern: str) -> None:
    reason = {"{": "00003.tar: no such object; 2 of 5 objects", "/": "no file named .*tar in this folder"}
    expected = next(
        (text for key, text in reason.items() if key in pattern[6:]), "no such (file|object); correct"
    )
    with pytest.raises(DocumentError, match=expected):
        open_tars(laion.url(pattern))


def test_tars_of_other_file_systems_are_read(folder: Path) -> None:
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe_file(f"/laion/{file.name}", file.read_bytes())
    assert contents(list(open_tars(Url("memory://laion/*.tar")))) == contents(list(open_tars(folder)))


def test_the_command_indexes_objects_with_an_estimate_of_requests(laion: Bucket) -> None:
    result = CliRunner().invoke(app, ["data", "index", laion.url("laion/{00000..00002}.tar")])
    assert result.exit_code == 0, result.output
    requests = [each for each in laion.requests() if "list-type" not in each.path]
    gets = [each for each in requests if each.range]
    assert len(gets) == 3
    assert "about 30 documents, 12 requests of " in result.stderr
    assert result.stdout == "tars: 30 documents; indexed 3 files\n"


def test_objects_are_held_out(laion: Bucket) -> None:
    arguments = ["data", "check", "digits/stage2", "--samples", "1", "--held-out", laion.url("laion/*.tar")]
    result = CliRunner().invoke(app, arguments)
    assert " of the 30 held-out documents" in result.stdout, result.exception


def test_a_recipe_of_objects_is_checked_and_trained(laion: Bucket, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"extends: digits/stage2\ndata:\n  - {{name: tars, path: 's3://{laion.name}/laion/{{00000..00002}}.tar'}}\n"
    )
    result = CliRunner().invoke(app, ["data", "check", str(recipe)])
    assert result.exit_code == 0 and "30" in result.output
    registry, losses = Registry.load(), []
    for workers in (0, 2):
        settings = ("train.steps=2", "train.log_every=1", "train.batch_size=2", f"train.workers={workers}")
        losses.append(training_losses(str(recipe), tmp_path / f"run{workers}", settings))
        loaded = load_recipe(str(recipe), settings, registry)
        assert loaded.to_dict()["data"][0]["path"] == laion.url("laion/{00000..00002}.tar")
    assert losses[0] == losses[1] and len(losses[0]) == 2
