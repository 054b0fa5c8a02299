"""Work on a cache that ended early continues with the same bytes, or is refused with the reason."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import cache_runs
import caches
import layouts
from cache_runs import DOCUMENTS, RepeatingDocuments
from caches import CLIP
from dreamkit.cache import fill
from dreamkit.cache.listing import LISTED
from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.shards import KEYS
from dreamkit.cache.table_builder import TableBuilder
from dreamkit.cache.unfinished import Unfinished, read_sealed, write_sealed
from dreamkit.document import Document
from dreamkit.errors import CacheError, OutputError, with_notes
from dreamkit.model.model import DreamModel
from failing_writes import content, failing_operation


@pytest.fixture(scope="module")
def model() -> DreamModel:
    return caches.build_model(caches.recipe())


@pytest.fixture(scope="module")
def straight(model: DreamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "cache"
    cache_runs.write(folder, model=model)
    return folder


class Stop(Exception):
    pass


@contextmanager
def stop_at(patch: pytest.MonkeyPatch, calls: int) -> Iterator[None]:
    """Stop the command when it has finished this number of blocks of rows."""
    finish = Unfinished.finish_block
    left = iter(range(calls, -1, -1))

    def stopping(work: Unfinished, stage: Any, number: int, content: Any) -> None:
        finish(work, stage, number, content)
        if stage == fill.COMPUTED and next(left) == 1:
            raise Stop

    with patch.context() as during, pytest.raises(Stop):
        during.setattr(Unfinished, "finish_block", stopping)
        yield


@pytest.fixture
def begun(model: DreamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is unfinished: its images are listed, and three blocks of rows computed."""
    with stop_at(monkeypatch, 3):
        cache_runs.write(tmp_path / "cache", model=model)
    assert not (tmp_path / "cache").exists() and len([*computed(tmp_path / "cache")]) == 3
    return tmp_path / "cache"


def computed(out: Path) -> Iterator[Path]:
    yield from sorted((Unfinished(out).folder / fill.COMPUTED).iterdir())


def test_each_operation_may_fail_and_the_work_continues_with_the_same_bytes(
    model: DreamModel, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third operation fails once; all of them are those of a command without a fault."""
    out, work, continued = tmp_path / "cache", Unfinished(tmp_path / "cache"), 0
    for number in count(1, 3):
        with failing_operation(tmp_path, number, monkeypatch, writes=True) as failing:
            try:
                cache_runs.write(out, model=model)
            except OutputError as error:
                assert failing.failed and f"cannot write {tmp_path}" in str(error), error
        if not failing.failed:
            break
        if not out.exists():  # some failures harm nothing, as one of the folder above, which is there
            continued += work.has_blocks()
            cache_runs.write(out, model=model, resume=work.has_blocks())
        assert content(out) == content(straight), failing.failed
        assert [path.name for path in tmp_path.iterdir()] == ["cache"], failing.failed
        shutil.rmtree(out)
    assert number > 100 and continued > number / 6


def counted_rows(patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return a dict that gets the number of images computed for each table from now on."""
    rows = {"features": 0, "latents": 0}
    compute = TableBuilder._compute

    def counting(builder: TableBuilder, writer: Any) -> None:
        rows[builder.table] += len(builder._waiting)
        compute(builder, writer)

    patch.setattr(TableBuilder, "_compute", counting)
    return rows


def test_finished_blocks_are_not_read_or_computed_again(
    model: DreamModel, straight: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [read_sealed(path) or {} for path in computed(begun)]
    files = [name for record in records for name in record["files"]]
    rows = counted_rows(monkeypatch)
    cache_runs.write(begun, model=model, resume=True)
    assert content(begun) == content(straight)
    for table, record in CacheManifest.read(begun).tables.items():
        done = [file for file in files if file.startswith(table)]
        assert done and rows[table] == record["images"] - sum(map(row_count, map(begun.joinpath, done)))


def row_count(file: Path) -> int:
    with safe_open(file, "pt") as shard:
        return int(shard.get_slice(KEYS).get_shape()[0])


def test_each_image_is_computed_once_wherever_it_is(
    model: DreamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = counted_rows(monkeypatch)
    report = cache_runs.write(tmp_path / "cache", model=model)
    assert rows == {table: record["images"] for table, record in report.manifest.tables.items()}
    uses = [image for number in range(DOCUMENTS) for image in cache_runs.document(number).images]
    assert rows["features"] < sum(image.read for image in uses) / 1.5  # many of them are the same


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_bit, cut, Path.unlink])
def test_a_damaged_block_is_computed_again(
    model: DreamModel, straight: Path, begun: Path, damage: Callable[[Path], None]
) -> None:
    work = Unfinished(begun)
    damage(next(work.tables.glob("features-*")))
    damage(next(work.tables.glob("latents-*1.safetensors")))
    damage(next(computed(begun)))
    damage(work.folder / LISTED / "00002.json")
    (work.tables / "latents-00099.safetensors").touch()
    cache_runs.write(begun, model=model, resume=True)
    assert content(begun) == content(straight)


def test_work_is_continued_or_thrown_away_only_when_asked(
    model: DreamModel, straight: Path, begun: Path
) -> None:
    folder = Unfinished(begun).folder
    before = content(folder)
    with pytest.raises(CacheError) as error:
        cache_runs.write(begun, model=model)
    assert str(error.value) == (
        f"{folder} is unfinished work on {begun}; continue it with --resume, or throw it away with --overwrite"
    )
    assert content(folder) == before
    cache_runs.write(begun, model=model, overwrite=True, datasets=[RepeatingDocuments(bad=(5,))])
    assert content(begun) != content(straight) and not folder.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"recipe": {"model.vision_encoder": {**CLIP, "layer": -1}}},
            "vision_encoder: layer: -2 in the unfinished",
        ),
        (
            {"recipe": {"train": {"seed": 1}}},
            r"image_decoder: weights: sha256 \w+\.\.\. in the unfinished work, ",
        ),
        (
            {"recipe": {"train": {"precision": "float64"}}},
            "vision_encoder: precision: float32 in the unfinished work",
        ),
        ({"only": ["latents"]}, "tables: features and latents in the unfinished work, latents now"),
        ({"datasets": [RepeatingDocuments(changed=7)]}, r"data\.0: changed: document 7"),
        ({"datasets": [layouts.TinyDocuments()]}, r"data\.0: had 30 documents, has 5"),
        ({"shard_bytes": 99}, "shard_bytes: 1000 in the unfinished work, 99 now"),
    ],
)
def test_work_of_another_recipe_data_or_weights_is_refused_with_the_reason(
    model: DreamModel, begun: Path, options: dict[str, Any], line: str
) -> None:
    before = content(Unfinished(begun).folder)
    changes = options.get("recipe")
    options = {"model": model, **options} if changes is None else {"recipe": caches.recipe(**changes)}
    with pytest.raises(CacheError, match=r"cannot be continued; use the recipe, data and weights") as error:
        cache_runs.write(begun, resume=True, **options)
    assert re.search(rf"\n  {line}", str(error.value)), error.value
    assert content(Unfinished(begun).folder).keys() == before.keys()


def test_a_finished_cache_is_not_written_again(model: DreamModel, straight: Path, tmp_path: Path) -> None:
    before = content(straight)
    report = cache_runs.write(straight, model=model, resume=True)
    assert report.was_finished and content(straight) == before
    with pytest.raises(
        CacheError, match=r"is complete, and of other settings or data; .*\n  vision_encoder: layer: "
    ):
        other = caches.recipe(**{"model.vision_encoder": {**CLIP, "layer": -1}})
        cache_runs.write(straight, recipe=other, resume=True)
    with pytest.raises(CacheError, match=r"\n  data\.0: path: '.*' in the cache, '.*' now"):
        moved = caches.recipe(data=[{"name": "pairs", "path": "elsewhere"}])
        cache_runs.write(straight, recipe=moved, model=model, resume=True)
    with pytest.raises(CacheError, match=r"no unfinished work on .*new to continue; leave out --resume"):
        cache_runs.write(tmp_path / "new", model=model, resume=True)


def test_a_finished_cache_names_the_tables_that_it_lacks(model: DreamModel, tmp_path: Path) -> None:
    cache_runs.write(tmp_path / "cache", model=model, only=["features"])
    report = cache_runs.write(tmp_path / "cache", model=model, resume=True)
    assert report.was_finished and report.left_out.keys() == {"latents"}
    assert "finished without this table" in report.left_out["latents"]


def test_a_kill_after_the_rename_leaves_nothing_to_do(
    model: DreamModel, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(work: Unfinished) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(
            Unfinished, "remove", lambda work: killed(work) if (tmp_path / "cache").exists() else None
        )
        cache_runs.write(tmp_path / "cache", model=model)
    assert content(tmp_path / "cache") == content(straight) and Unfinished(tmp_path / "cache").folder.exists()
    assert cache_runs.write(tmp_path / "cache", model=model, resume=True).was_finished
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_old_cache_is_replaced_by_continued_work(
    model: DreamModel, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cache"
    caches.write(out, caches.recipe(), model=model)
    before = content(out)
    with stop_at(monkeypatch, 2):
        cache_runs.write(out, model=model, overwrite=True)
    assert content(out) == before
    with pytest.raises(CacheError, match=r"is not empty; .* replace the cache with --overwrite"):
        cache_runs.write(out, model=model, resume=True)
    assert cache_runs.write(out, model=model, resume=True, overwrite=True).replaced
    assert content(out) == content(straight)


def test_an_error_names_the_finished_part(
    model: DreamModel, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that change between the two stages are an error, which a restored document ends."""
    out, read = tmp_path / "cache", RepeatingDocuments.__getitem__
    is_listed = Unfinished(out).folder / fill.COMPUTED / "00000.json"

    def changed(data: RepeatingDocuments, index: int) -> Document:
        return read(data, index - (is_listed.exists() and index > 6))

    with monkeypatch.context() as patch, pytest.raises(CacheError) as error:
        patch.setattr(RepeatingDocuments, "__getitem__", changed)
        cache_runs.write(out, model=model)
    assert re.fullmatch(
        r"document \d+: one of its images has changed; the data is not as listed before; restore it and use --resume, "
        rf"or begin again with --overwrite; the finished part is in {Unfinished(out).folder}; continue with --resume",
        with_notes(error.value),
    )
    cache_runs.write(out, model=model, resume=True)
    assert content(out) == content(straight)


def test_the_limit_of_bad_documents_holds_for_all_of_them_together(model: DreamModel, tmp_path: Path) -> None:
    """The bad documents come first, and are less than the limit."""
    size = 1100
    documents = RepeatingDocuments()
    documents.documents, documents.bad = documents.documents[:1] * size, [*range(1, 101)]
    options: dict[str, Any] = {"datasets": [documents], "model": model, "block_documents": 100}
    with pytest.raises(
        CacheError, match=r"at most 5\.00% bad documents \(train\.max_skipped\), got 63 of 1,100; "
    ):
        cache_runs.write(tmp_path / "cache", recipe=caches.recipe(train={"max_skipped": 0.05}), **options)
    with pytest.raises(CacheError, match="nothing can be cached"):  # no document has an image
        cache_runs.write(tmp_path / "cache", recipe=caches.recipe(train={"max_skipped": 0.1}), **options)
    assert not [*tmp_path.iterdir()]


def test_too_little_space_is_an_error_before_anything_is_computed(
    model: DreamModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = counted_rows(monkeypatch)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OutputError, match=r"cache: expected [\d.]+ kB of free space, got 1.0 kB; free some space"
    ):
        cache_runs.write(tmp_path / "cache", model=model)
    assert not any(rows.values()) and Unfinished(tmp_path / "cache").has_blocks()


def test_a_sealed_file_is_read_only_as_it_was_written(tmp_path: Path) -> None:
    content = {"a": [1, "\udcff", None], "b": {"c": "\n"}}
    write_sealed(tmp_path / "file", content)
    data = (tmp_path / "file").read_bytes()
    assert read_sealed(tmp_path / "file") == content and read_sealed(tmp_path / "none") is None
    for damaged in (b"", data[:-2], data + data, data.replace(b"1", b"2"), b"\xff" + data):
        (tmp_path / "file").write_bytes(damaged)
        assert read_sealed(tmp_path / "file") is None
