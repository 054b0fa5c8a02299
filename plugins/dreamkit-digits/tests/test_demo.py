"""The demo: its recipes chain, its model writes, and a missed target fails it."""

import dataclasses
import json
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from dreamkit import Registry, TrainingError, load_recipe, train_recipe
from dreamkit_digits import measure, task
from dreamkit_digits.curves import Stage
from dreamkit_digits.demo_folder import UNFINISHED
from dreamkit_digits.judge import Judge
from dreamkit_digits.measure import TARGETS, Measured
from dreamkit_digits.report import Run
from dreamkit_digits.task import STAGES, DigitsDemo


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.mark.parametrize("name", STAGES)
def test_each_recipe_states_its_command_and_freezes_the_parts_that_the_paper_freezes(
    registry: Registry, name: str
) -> None:
    recipe = load_recipe(name, (), registry)
    assert not {"vision_encoder", "image_decoder"} & set(recipe.train.trainable)
    assert ("language_model" in recipe.train.trainable) == (name != "digits/stage1")
    lines = registry.recipes()[name].read_text(encoding="utf-8").splitlines()
    *_, command = takewhile(lambda line: line.startswith("# "), lines)
    assert shlex.split(command)[:4] == ["#", "dreamkit", "train", name]


def test_the_longest_document_fits_into_a_row(registry: Registry) -> None:
    """It has three images that are drawn and read back, and the words between them."""
    recipe = load_recipe("digits/stage3", (), registry)
    assert recipe.train.max_length is not None
    longest = 3 * (recipe.model.dream_queries + 2 + 16 + 2) + 16
    assert recipe.train.max_length >= longest


def test_the_stages_chain_and_the_model_writes(registry: Registry, tmp_path: Path) -> None:
    start: list[str] = []
    for name in STAGES:
        recipe = load_recipe(
            name, ["train.steps=2", "train.warmup=0", "train.global_batch=4", *start], registry
        )
        result = train_recipe(recipe, registry, tmp_path / name)
        start = [f"init={result.checkpoint}"]
        assert len(result.log) == 1
    exercises = measure.exercises(seed=0)
    finished: list[int] = []
    for name in ("reads", "counts", "chats"):
        prompts, rule = exercises[name]
        documents = measure.write(
            result.model, prompts[:3], rule, Judge.train(), seed=1, advance=finished.append
        )
        assert [each.expected for each in documents] == [prompt.expected for prompt in prompts[:3]]
        assert all(
            each.document.segments[: each.prompt_segments] == prompt.segments
            for each, prompt in zip(documents, prompts[:3], strict=True)
        )
    assert finished == [3, 3, 3]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(TrainingError, match="is not empty"):
        DigitsDemo().run(tmp_path)
    with pytest.raises(TrainingError, match="txt is a file"):
        DigitsDemo().run(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def run(**changes: float) -> Run:
    documents = dict.fromkeys(field.name for field in dataclasses.fields(Measured)[2:])
    measured = Measured(1.0, 1, **{name: () for name in documents})
    samples = {f"{name}_samples": 1 for name in (*TARGETS, "sum_accuracy_unseen_pairs")}
    figures = {**TARGETS, "sum_accuracy_unseen_pairs": 0.0, **samples, "seed": 0, "seconds": 1.0}
    figures |= {"peak_memory_bytes": task.MOST_MEMORY, **changes}
    return Run([Stage("I", [])], measured, figures, Path("checkpoint"))


def demo_with(result: Run, monkeypatch: pytest.MonkeyPatch) -> DigitsDemo:
    """Return a demo with these figures that trains nothing."""

    class Fixed(Measured):
        def figures(self) -> dict[str, float]:
            return dict(result.figures)

    measured = Fixed(**vars(result.measured))
    monkeypatch.setattr(task, "train", lambda out, seed: (None, result.stages))
    monkeypatch.setattr(task, "save_checkpoint", lambda model, folder: None)
    monkeypatch.setattr(task, "measure_with_bar", lambda model, seed: measured)
    return DigitsDemo()


def test_an_interrupted_demo_leaves_nothing_and_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(out: Path, seed: int) -> None:
        (out / "stage1").mkdir()
        (out / "stage1/log.jsonl").touch()
        error = KeyboardInterrupt()
        error.add_note("step 3 is saved in stage1")
        raise error

    demo, train = demo_with(run(), monkeypatch), task.train
    monkeypatch.setattr(task, "train", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        demo.run(tmp_path / "demo")
    assert caught.value.__notes__ == ["the demo was removed; start it again"]
    assert list(tmp_path.iterdir()) == []
    # that of a killed demo
    (tmp_path / "demo/stage1").mkdir(parents=True)
    (tmp_path / "demo" / UNFINISHED).touch()
    monkeypatch.setattr(task, "train", train)
    demo.run(tmp_path / "demo")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["metrics.json", "report.html"]


def test_figures_that_reach_their_targets_pass(tmp_path: Path) -> None:
    task.write(run(), tmp_path)
    task.check(run().figures, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == run().figures
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("name", TARGETS)
def test_a_missed_target_fails_the_demo_after_all_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    missed = run(**{name: TARGETS[name] - 0.001})
    with pytest.raises(TrainingError, match=rf"{name}: expected at least \d+%, got \d+\.\d%"):
        demo_with(missed, monkeypatch).run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html"]


def test_too_much_memory_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TrainingError, match=r"peak_memory_bytes: expected at most 3 GB, got 3\.1 GB"):
        task.check(run(peak_memory_bytes=31 * 10**8).figures, tmp_path)
