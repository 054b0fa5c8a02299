"""Runs with bad documents: their list and numbers are exact over workers and resumes, and too many end the run."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import layouts
import runs
import tiny
from dreamkit.build.build import build_model
from dreamkit.data.mixture import run_mixture
from dreamkit.data.samples import Samples
from dreamkit.document import Document, Text
from dreamkit.errors import StorageError, TrainingError, with_notes
from dreamkit.recipe.sections import Recipe
from dreamkit.training.run import TrainResult, train_recipe
from runs import assert_identical, weights

STEPS = 6
Run = Callable[..., tuple[int, str, str]]


class Documents(layouts.BadDocuments):
    """Two bad documents, a long one and others."""

    def __init__(self, bad: Any = (1, 3)) -> None:
        super().__init__(bad)
        self.documents = [*self.documents, Document((Text("a"), Text("long " * 60)), name="long")]


def recipe(**train: Any) -> Recipe:
    settings = {"steps": STEPS, "accumulation": 2, "batch_size": 2, "log_every": 2, "save_every": 2}
    return layouts.recipe(**{**settings, **train})


def train(
    out: Path, bad: Any = (1, 3), *, on_log: Any = None, options: Any = None, **settings: Any
) -> TrainResult:
    return train_recipe(
        recipe(**settings), runs.REGISTRY, out, datasets=[Documents(bad)], on_log=on_log, **(options or {})
    )


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]


def totals(out: Path) -> list[tuple[int, int]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(entry["skipped"], entry["cut"]) for entry in entries]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    out = tmp_path_factory.mktemp("straight") / "out"
    return out, train(out)


def test_the_list_and_the_numbers_are_those_of_the_places(
    straight: tuple[Path, TrainResult], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = straight
    settings = recipe()
    sequencer = build_model(settings, runs.REGISTRY).sequencer()
    samples = Samples(run_mixture(settings, [Documents()], 4), sequencer)
    sequences = [samples[place] for place in range(len(samples))]
    expected = [
        {
            "step": sequence.place // 4 + 1,
            "place": sequence.place,
            "data": 0,
            "index": document.index,
            "shard": "/data/a.tar",
            "member": str(document.index),
            "reason": f"expected an image, got a text of {document.index} letters",
            "is_long": False,
        }
        for sequence in sequences
        for document in sequence.skipped
        if sequence.place is not None
    ]
    assert lines(out) == expected and len(expected) > 4
    ends = [8, 16, 24]
    assert totals(out) == [
        (
            sum(len(sequence.skipped) for sequence in sequences[:end]),
            sum(sequence.is_cut for sequence in sequences[:end]),
        )
        for end in ends
    ]
    assert totals(out)[-1][1] > 0


def test_the_end_of_a_run_counts_what_it_skipped_and_cut(
    tmp_path: Path, straight: tuple[Path, TrainResult], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "out", save_every=0)
    skipped, cut = totals(tmp_path / "out")[-1]
    err = capsys.readouterr().err
    assert f"skipped {skipped} documents, listed in {tmp_path / 'out/skipped.jsonl'}\n" in err
    assert f"cut {cut} documents, which were longer than a row\n" in err
    train(tmp_path / "good", (), max_length=256, steps=1, batch_size=1, accumulation=1)
    assert "skipped" not in capsys.readouterr().err and not (tmp_path / "good/skipped.jsonl").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_that_read_data_change_no_line(
    tmp_path: Path, straight: tuple[Path, TrainResult], workers: int
) -> None:
    result = train(tmp_path / "out", workers=workers)
    assert lines(tmp_path / "out") == lines(straight[0]) and totals(tmp_path / "out") == totals(straight[0])
    assert_identical(weights(result.model), weights(straight[1].model))


@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_run_that_is_resumed_has_each_line_once(
    tmp_path: Path, straight: tuple[Path, TrainResult], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(runs.Interrupted):
        patched.setattr("dreamkit.training.run.add_resume_point", lambda *_: None)
        train(out, on_log=runs.interrupt_at(step), log_every=1)
    with (out / "skipped.jsonl").open("a") as file:
        file.write('{"step": 5, "place": 17, "da')  # cut by the kill
    result = train(out, options={"resume": True}, log_every=1)
    assert lines(out) == lines(straight[0]) and totals(out)[-1] == totals(straight[0])[-1]
    assert_identical(weights(result.model), weights(straight[1].model))


def test_a_damaged_line_of_the_list_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(runs.Interrupted):
        train(out, on_log=runs.interrupt_at(2))
    text = (out / "skipped.jsonl").read_text()
    for damaged in ("{", "[1]", '{"step": "3"}', '{"step": 1, "place": 2}', "\x00"):
        (out / "skipped.jsonl").write_text(f"{damaged}\n{text}")
        with pytest.raises(
            TrainingError, match=r"skipped\.jsonl:1: invalid JSON entry: .*; remove this line"
        ):
            train(out, options={"resume": True})


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamkit.data.skipped.UNLIMITED", 10)


def test_too_many_bad_documents_end_a_run_that_is_saved(tmp_path: Path, limited: None) -> None:
    out = tmp_path / "out"
    with pytest.raises(TrainingError) as caught:
        train(out, max_skipped=0.1)
    message, bad = with_notes(caught.value), len(lines(out))
    last = lines(out)[-1]["step"]
    read = 4 * last + bad
    assert read > 10 and message.startswith(
        f"expected at most 10.00% bad documents (train.max_skipped), got {bad / read:.2%}: {bad} of {read}, listed in "
        f"{out / 'skipped.jsonl'}; {bad} of {bad} in data.0; {bad} of {bad} in /data/a.tar; {bad} of {bad}: "
        "expected an image, got a text of ... letters; "
        "correct the data and add --changed-data, or raise train.max_skipped; "
    )
    assert (
        f"step {last - 1} is saved in {out / 'checkpoints'}/step-{last - 1}; continue with --resume"
        in message
    )
    with pytest.raises(TrainingError, match=r"expected at most 20\.00% bad documents") as caught:
        train(out, max_skipped=0.2, options={"resume": True})
    bad = len(lines(out))  # the resumed process counts the kinds of those before, too
    assert f"; {bad} of {bad} in data.0; {bad} of {bad} in /data/a.tar; " in str(caught.value)
    (out / "skipped.jsonl").unlink()
    with pytest.raises(
        TrainingError,
        match=r"listed in [^;]*skipped\.jsonl; correct the data and add --changed-data, or raise",
    ):
        train(out, (), max_skipped=0.0, options={"resume": True})
    result = train(out, max_skipped=0.9, options={"resume": True})
    assert len(lines(out)) < totals(out)[-1][0] == result.log[-1]["skipped"]


def test_the_limit_counts_anew_from_corrected_data(tmp_path: Path, limited: None) -> None:
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="bad documents"):
        train(out, max_skipped=0.1)
    before = len([line for line in lines(out) if line["step"] < lines(out)[-1]["step"]])
    changed: dict[str, Any] = {"max_skipped": 0.0, "options": {"resume": True, "changed_data": True}}
    with pytest.raises(runs.Interrupted):
        train(out, (), on_log=runs.interrupt_at(4), **changed)
    train(out, (), max_skipped=0.0, options={"resume": True})  # the new start holds
    assert totals(out)[-1][0] == len(lines(out)) == before > 0


def test_long_documents_that_are_skipped_have_no_limit(tmp_path: Path, limited: None) -> None:
    out = tmp_path / "out"
    result = train(out, (), too_long="skip", max_skipped=0.0)
    assert totals(out)[-1] == (len(lines(out)), 0) == (result.log[-1]["skipped"], 0)
    assert lines(out) and all(line["is_long"] for line in lines(out))
    assert {line["reason"].split(", got")[0] for line in lines(out)} == {"long: expected at most 256 tokens"}


def test_a_run_that_stopped_at_a_long_document_may_cut_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Exception, match=r"long: expected at most .*; or set train\.too_long to cut or skip"):
        train(out, (), too_long="stop")
    train(out, (), too_long="cut", options={"resume": True})
    with pytest.raises(TrainingError, match=r"train\.too_long: was 'cut', is 'skip'"):
        train(out, (), too_long="skip", options={"resume": True})


class Failing(Documents):
    """Documents on a disk that fails from the 80th read on."""

    def __init__(self) -> None:
        super().__init__(())
        self.reads = 0

    def __getitem__(self, index: int) -> Document:
        self.reads += 1
        if self.reads >= 80:
            raise OSError(errno.EIO, "Input/output error", "/data/a.tar")
        return super().__getitem__(index)


def test_a_failing_disk_ends_a_run_that_is_saved_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.data.document_reads.time.sleep", lambda delay: None)
    out = tmp_path / "out"
    with pytest.raises(StorageError) as caught:
        train_recipe(recipe(steps=60), runs.REGISTRY, out, datasets=[Failing()])
    message = with_notes(caught.value)
    assert "Input/output error: '/data/a.tar'; step " in message and message.endswith(
        "; continue with --resume"
    )
    assert not (out / "skipped.jsonl").exists()


def write_pairs(folder: Path, bad: set[int], size: int) -> None:
    folder.mkdir()
    records = []
    for number in range(size):
        path = folder / f"{number}.png"
        tiny.picture(number).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:200])
        records.append({"image": path.name, "caption": f"image {number}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_commands_skip_truncated_images_and_refuse_too_many(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "data", {2, 5}, 8)
    settings = {"trainable": ["dream_queries"], "steps": 4, "batch_size": 4}
    data = [{"name": "pairs", "path": "data/pairs.jsonl"}]
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny.recipe(train=settings, data=data)))
    code, _, err = run("train", file, "--out", tmp_path / "out")
    bad = lines(tmp_path / "out")
    assert code == 0 and f"skipped {len(bad)} documents, listed in" in err
    shard = str(tmp_path / "data/pairs.jsonl")
    assert {(line["shard"], line["member"]) for line in bad} == {(shard, "3"), (shard, "6")}
    assert all("cannot read the image" in line["reason"] for line in bad)
    code, _, err = run("cache", file, "--out", tmp_path / "cache")
    listed = tmp_path / "cache" / "skipped.jsonl"
    assert (
        code == 0 and f"skipped 2 documents, as training does, listed in {listed}; 2 of 2 in data.0; " in err
    )
    assert {json.loads(line)["member"] for line in listed.read_text().splitlines()} == {"3", "6"}
    code, _, err = run("train", file, f"train.cache={tmp_path / 'cache'}", "--out", tmp_path / "cached")
    assert code == 0 and lines(tmp_path / "cached") == bad
    assert run("plan", file, "--batches", "4")[0] == 0
    code, _, err = run("train", file, "train.on_error=stop", "--out", tmp_path / "stopped")
    assert code == 2 and f"{shard}:" in err and "set train.on_error=skip to skip bad documents; step " in err
    monkeypatch.setattr("dreamkit.data.skipped.UNLIMITED", 4)
    for command in ("train", "cache"):
        code, _, err = run(command, file, "--out", tmp_path / f"many {command}")
        assert code == 2 and "expected at most 1.00% bad documents (train.max_skipped), got " in err
        assert f"in {shard}; " in err and "or raise train.max_skipped" in err
    assert f"; the first is {shard}: 3: cannot read the image " in err
