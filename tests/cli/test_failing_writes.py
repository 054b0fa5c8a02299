"""Writes that fail: the message names file and space, what existed is whole, and nothing is left over."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

import layouts
import runs
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.merge import merge_adapters
from dreamkit.checkpoints.published import import_published
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.cli.live import write_document
from dreamkit.document import Document
from dreamkit.errors import OutputError, with_notes
from dreamkit.model.placing import placement
from dreamkit.runs.run_paths import resume_points
from dreamkit.scaffold import new_plugin
from failing_writes import content, failing_operation, file_size_limit
from saved_models import REGISTRY, build_tiny, copied as copied, perturb, saved as saved

PUBLISHED = Path(__file__).parents[1] / "reference" / "published-sd" / "checkpoint"
# peft reads this attribute of transformers' models
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@dataclass(frozen=True)
class Writer:
    """A command, as a function of the folder to write, which replaces an older one where `replaces` is True."""

    write: Callable[[Path], object]
    replaces: bool


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Writer]:
    sources = tmp_path_factory.mktemp("sources")
    model = build_tiny()
    perturb(model)
    save_checkpoint(model, plain := sources / "plain")
    save_checkpoint(build_tiny(**{"model.adapters": layouts.ADAPTERS[1:2]}), adapted := sources / "adapted")
    prompt = Document.interleave("say")
    settings = {"max_tokens": 3, "max_images": 1}
    return {
        "save": Writer(lambda out: save_checkpoint(model, out), True),
        "generate": Writer(
            lambda out: write_document(
                plain,
                prompt,
                out,
                title="say",
                seed=0,
                settings=settings,
                to=placement("cpu"),
                overwrite=True,
            ),
            True,
        ),
        "import-published": Writer(lambda out: import_published(PUBLISHED, out, REGISTRY), True),
        "merge-adapters": Writer(lambda out: merge_adapters(adapted, out, REGISTRY), False),
        "new-plugin": Writer(
            lambda out: new_plugin("dreamkit-wave", "projector", out, registry=REGISTRY), False
        ),
    }


def leftovers(folder: Path) -> list[str]:
    """Return the hidden files and folders below `folder` that dreamkit uses while it writes."""
    return [
        path
        for path in content(folder)
        if re.search(r"/\.[^/]*\.(partial|replaced|removed|scratch|lock)", f"/{path}")
    ]


# `dreamkit cache` keeps its unfinished work; tests/cache/test_unfinished.py lets each of its operations fail.
NAMES = ("save", "generate", "import-published", "merge-adapters", "new-plugin")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a file beside the folders that are written."""
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "replaced"])
def test_each_operation_may_fail(
    writers: dict[str, Writer], name: str, is_new: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, out = writers[name], place / "above" / "out"
    if not (is_new or writer.replaces):
        pytest.skip("it writes a new folder only")
    if not is_new:
        writer.write(out)
    before, errors = content(place), 0
    for number in count(1):
        with failing_operation(place, number, monkeypatch) as failing:
            try:
                writer.write(out)
            except OutputError as error:
                errors += 1
                assert failing.failed, error
                assert f"cannot write {place}" in str(error) and " free)" in str(error), failing.failed
                assert "partial" not in str(error)
                assert content(place) == before, failing.failed
                continue
        if not failing.failed:
            break
        # Not every operation is necessary, such as the removal of an old folder.
        assert not leftovers(place)
        if is_new:
            shutil.rmtree(place / "above")
    assert errors > 3


@pytest.mark.parametrize("name", NAMES)
def test_each_size_of_files_may_be_too_large(
    writers: dict[str, Writer], name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, out = writers[name], place / "out"
    before = content(place)
    sizes: list[int] = []
    for size in (0, 100, 1000, 4000, 10_000, 40_000, 160_000, 2**30):
        with file_size_limit(size):
            try:
                writer.write(out)
            except OutputError as error:
                sizes.append(size)
                assert "File too large (at most" in str(error) and "in a file, " in str(error)
                assert f"cannot write {place}" in str(error) and "(ulimit -f)" in str(error)
                assert content(place) == before
                continue
        break
    assert len(sizes) > 1 and size > sizes[-1]
    if writer.replaces:
        before = content(place)
        for limit in sizes:
            with file_size_limit(limit), pytest.raises(OutputError):
                writer.write(out)
            assert content(place) == before


def test_a_training_on_a_full_disk_keeps_whole_resume_points(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=6, save_every=1)
    runs.run(tmp_path / "whole", recipe)
    largest = max(len(file or b"") for file in content(tmp_path / "whole").values())
    log = (tmp_path / "whole" / "log.jsonl").stat().st_size
    for limit in (largest // 2, largest - 1, log // 2):
        out = tmp_path / str(limit)
        with (
            file_size_limit(limit),
            pytest.raises(OutputError, match=rf"cannot write {out}.* free\)") as caught,
        ):
            runs.run(out, recipe)
        assert with_notes(caught.value).count("cannot write") == 1
        assert not leftovers(tmp_path)
        assert_whole(out)


def test_a_failing_operation_of_a_training_keeps_whole_resume_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = layouts.recipe(steps=6, save_every=2)
    whole = runs.run(tmp_path / "whole", recipe)
    for number in range(1, 60, 7):
        out = tmp_path / str(number)
        with failing_operation(out, number, monkeypatch) as failing, suppress(OutputError):
            runs.run(out, recipe)
        assert failing.failed
        assert not leftovers(tmp_path)
        assert_whole(out)
        if resume_points(out) and not (out / "checkpoint").exists():
            again = runs.run(out, recipe, resume=True)
            runs.assert_identical(runs.weights(again.model), runs.weights(whole.model))


def assert_whole(out: Path) -> None:
    """Check that each line of the log and each checkpoint of a run can be read."""
    for line in (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else ():
        assert json.loads(line)["step"]
    for point in resume_points(out):
        Manifest.read(point)
    if (out / "checkpoint").exists():
        load_checkpoint(out / "checkpoint", REGISTRY)


def test_a_checkpoint_in_use_is_removed_after_a_rename(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[tuple[str, bool]] = []
    remove = shutil.rmtree

    def watched(path: Path, **named: object) -> None:
        removed.append((Path(path).name, Path(path).exists()))
        remove(path, **named)

    monkeypatch.setattr(shutil, "rmtree", watched)
    save_checkpoint(build_tiny(), copied)
    runs.run(copied.parent / "run", layouts.recipe(steps=4, save_every=1))
    existing = [name for name, exists in removed if exists]
    assert ".checkpoint.replaced.removed" in existing and ".step-1.removed" in existing
    assert all(name.startswith(".") and name.endswith(".removed") for name in existing)
