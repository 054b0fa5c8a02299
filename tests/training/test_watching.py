"""Drawings and held-out losses of a run: what they are, when they come, and that they change nothing else."""

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image as PIL
from torch import Tensor

import layouts
import tiny
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.data.held_out_order import HeldOutOrder
from dreamkit.document import Document
from dreamkit.errors import OutputError, RecipeError, with_notes
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import computing_in
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training import drawings, watching
from dreamkit.training.agreement import Agreement
from dreamkit.training.drawings import AT_ONCE, forward_passes
from dreamkit.training.held_out_losses import HeldOutLosses
from dreamkit.training.run_log import TIMES
from failing_writes import content
from runs import assert_identical, weights
from watched_runs import PROMPTS, held_out_log, watched_recipe, watched_run

UNWATCHED = {"draw_every": 0, "prompts": (), "eval_every": 0}


class UsesRandomNumbers(layouts.TinyDocuments):
    """Documents whose reader uses every global generator."""

    def __getitem__(self, index: int) -> Document:
        random.random(), np.random.rand(), torch.rand(1)
        return super().__getitem__(index)


def test_a_view_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    dropping = [adapter | {"dropout": 0.5} for adapter in layouts.ADAPTERS]
    settings: dict[str, Any] = {"adapters": dropping, "trainable": layouts.TRAINABLE[1:], "steps": 3}
    results = [
        watched_run(tmp_path / "watched", watched_recipe(**settings), held_out=[UsesRandomNumbers()]),
        watched_run(tmp_path / "unwatched", watched_recipe(**settings, **UNWATCHED)),
    ]
    watched, unwatched = (
        [{key: value for key, value in entry.items() if key not in TIMES} for entry in result.log]
        for result in results
    )
    assert watched == unwatched and len(watched) == 3
    assert_identical(weights(results[0].model), weights(results[1].model))
    assert [entry["step"] for entry in held_out_log(tmp_path / "watched")] == [1, 2, 3]
    assert not {"held_out.jsonl", "drawings"} & content(tmp_path / "unwatched").keys()


def test_both_are_due_after_their_steps_and_after_the_last_one(tmp_path: Path) -> None:
    watched_run(tmp_path, watched_recipe(steps=5, draw_every=3, eval_every=2))
    assert [entry["step"] for entry in held_out_log(tmp_path)] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.glob("drawings/*")) == ["step-3", "step-5"]
    with PIL.open(tmp_path / "drawings/step-5/2.png") as image:
        assert image.size == (16, 16) and image.text == {"Description": PROMPTS[2]}  # type: ignore[attr-defined]


def test_drawings_are_those_of_the_trained_weights(tmp_path: Path) -> None:
    result = watched_run(tmp_path, watched_recipe(precision="float64"))
    images = result.model.draw(PROMPTS, range(len(PROMPTS)), watched_recipe().generation)
    for number, image in enumerate(images):
        drawn = np.asarray(PIL.open(tmp_path / f"drawings/step-1/{number}.png")).astype(int)
        assert np.abs(drawn - np.asarray(image)).max() <= 1


def losses_of(
    model: DreamModel, recipe: Recipe, documents: list[Document] | None = None
) -> dict[str, float | None]:
    """Return the losses of a model on held-out documents."""
    device, data = torch.device("cpu"), [layouts.TinyDocuments(documents)]
    computing = partial(computing_in, recipe.train.precision, device.type)
    with torch.no_grad():
        return HeldOutLosses(model.eval(), recipe, device, data, Agreement(), computing).compute()


def test_averages_of_the_weights_are_drawn_and_evaluated(tmp_path: Path) -> None:
    recipe = watched_recipe(steps=3, draw_every=3, eval_every=3, precision="float64", ema=0.9)
    trained = watched_run(tmp_path, recipe).model
    averages, _ = load_checkpoint(tmp_path / "checkpoint-ema", Registry.load())
    (entry,) = held_out_log(tmp_path)
    expected = losses_of(averages.double(), recipe)
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert losses_of(trained, recipe)["lm"] != pytest.approx(entry["lm"], rel=1e-4)
    with torch.no_grad():
        (image,) = averages.draw(PROMPTS[:1], range(1), recipe.generation)
    drawn = np.asarray(PIL.open(tmp_path / "drawings/step-3/0.png")).astype(int)
    assert np.abs(drawn - np.asarray(image)).max() <= 1


def test_held_out_losses_are_means_over_labels_and_images() -> None:
    """The text loss is compared with that of each document alone; the image loss with that of other batches."""
    model = tiny.model().eval()

    def losses(documents: list[Document] | None = None, **settings: Any) -> dict[str, float | None]:
        return losses_of(model, watched_recipe(precision="float64", **settings), documents)

    recipe = watched_recipe(precision="float64")
    collator = replace(model.collator(recipe), condition_drop=0.0)
    batches = [collator([document]) for document in tiny.documents()]
    labels = sum(float(batch.counts[0]) for batch in batches)
    with torch.no_grad(), computing_in(recipe.train.precision, "cpu"):
        lm = sum(float(model(batch).lm * batch.counts[0]) for batch in batches) / labels
    first = losses()
    assert first["lm"] == pytest.approx(lm, rel=1e-12)
    assert first["loss"] == pytest.approx(first["lm"] + 10 * first["denoising"], rel=1e-12)  # type: ignore[operator]
    apart = losses(global_batch=2, micro_batch=1, packing=False, steps=3)
    assert apart == {name: pytest.approx(value, rel=1e-10) for name, value in first.items()}
    assert losses(seed=1)["denoising"] != pytest.approx(first["denoising"], rel=1e-3)
    assert losses(tiny.documents()[2:3])["denoising"] is None


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    most=st.integers(1, 300),
)
def test_held_out_documents_are_spread_over_each_set(sizes: list[int], most: int) -> None:
    order = HeldOutOrder([[None] * size for size in sizes], most, seed=0)  # type: ignore[list-item]
    places = [order.place(place) for place in range(len(order))]
    for number, size in enumerate(sizes):
        chosen = [index for data, index in places if data == number]
        gaps = np.diff([*chosen, size])
        assert len(chosen) == min(size, most) and chosen[0] == 0
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@given(prompts=st.integers(1, 60), processes=st.integers(1, 9))
def test_processes_run_as_many_passes_and_each_prompt_is_drawn_once(prompts: int, processes: int) -> None:
    passes = [forward_passes(prompts, process, processes) for process in range(processes)]
    assert {len(each) for each in passes} == {ceil(ceil(prompts / processes) / AT_ONCE)}
    assert all(1 <= len(rows) <= AT_ONCE for each in passes for rows in each)
    own = [
        number
        for process, each in enumerate(passes)
        for rows in each
        for number in rows
        if number % processes == process
    ]
    assert sorted(own) == list(range(prompts))


def test_a_run_that_ends_in_a_view_makes_up_for_it_when_resumed(tmp_path: Path) -> None:
    recipe, straight, out = watched_recipe(steps=3), tmp_path / "straight", tmp_path / "out"
    expected = weights(watched_run(straight, recipe).model)

    def full(path: Path, text: str, append: Any = watching.append_text) -> None:
        if json.loads(text)["step"] == 2:
            raise OutputError("cannot write held_out.jsonl: no space")
        append(path, text)

    with patch.object(watching, "append_text", full), pytest.raises(OutputError) as caught:
        watched_run(out, recipe)
    assert f"step 2 is saved in {out / 'checkpoints/step-2'}" in with_notes(caught.value)
    assert_identical(weights(watched_run(out, recipe, resume=True).model), expected)
    for name in ("held_out.jsonl", "drawings"):
        seen, other = (
            {key: value for key, value in content(each).items() if key.startswith(name)}
            for each in (out, straight)
        )
        assert seen == other != {}


def test_a_resumed_run_drops_later_drawings_and_losses_and_may_change_the_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched_run(tmp_path, watched_recipe(steps=3, save_every=1))
    shutil.rmtree(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoints/step-2")
    capsys.readouterr()
    changed = watched_recipe(steps=3, draw_every=3, prompts=("b",), eval_every=2, eval_documents=2)
    watched_run(tmp_path, replace(changed, train=replace(changed.train, save_every=1)), resume=True)
    assert [entry["step"] for entry in held_out_log(tmp_path)] == [1, 2, 3]
    numbers = {step: len([*tmp_path.glob(f"drawings/step-{step}/*")]) for step in (1, 2, 3)}
    assert numbers == {1: len(PROMPTS), 2: 0, 3: 1}
    err = capsys.readouterr().err
    assert "train.prompts was ['a', '', " in err and ", is ['b']; train.eval_every was 1, is 2; " in err


def test_images_that_are_not_finite_end_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = type(tiny.model().image_decoder)

    def spoilt(part: Any, latents: Tensor, decode: Any = decoder.decode) -> Tensor:
        images: Tensor = decode(part, latents)
        images[1] = torch.nan
        return images

    with patch.object(decoder, "decode", spoilt), patch.object(drawings, "AT_ONCE", 2):
        watched_run(tmp_path, watched_recipe(steps=2))
    for step in (1, 2):
        folder = tmp_path / f"drawings/step-{step}"
        assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.txt", "2.png", "3.txt"]
        for number in (1, 3):
            text = (folder / f"{number}.txt").read_text()
            assert text == f"prompt {number}: expected finite pixels, got NaN or inf\n"
    assert capsys.readouterr().err.count("cannot draw prompt 1: expected finite pixels") == 1


def test_held_out_losses_that_are_not_finite_are_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compute(losses: Any, batch: Any, sums: Any = HeldOutLosses._sums) -> Tensor:
        values: Tensor = sums(losses, batch)
        values[1] = torch.inf
        return values

    with patch.object(HeldOutLosses, "_sums", compute):
        watched_run(tmp_path, watched_recipe(steps=2))
    for entry in held_out_log(tmp_path):
        assert entry["lm"] > 0 and entry["denoising"] is entry["loss"] is None
    assert capsys.readouterr().err.count("the held-out losses are not finite") == 1


def test_bad_held_out_documents_are_replaced_and_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched_run(tmp_path, watched_recipe(steps=2), held_out=[layouts.BadDocuments()])
    note = "held_out: 2 documents cannot be used, and others replace them in each evaluation; the first one is of"
    err = capsys.readouterr().err
    assert err.count(note) == 1 and "held_out.0: /data/a.tar: 1: expected an image" in err


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"prompts": ("a", "b" * 255)}, {}, "train.prompts.1: prompt 1: expected at most 256 tokens, got 2"),
        (
            {},
            {"steps": 100_000},
            "generation.steps: cannot draw in 100000 steps with the decoder's own scheduler",
        ),
        (
            {},
            {"negative_prompt": "b" * 255},
            "generation.negative_prompt: negative_prompt: expected at most 256",
        ),
    ],
)
def test_settings_that_cannot_be_drawn_with_are_refused_before_training(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    recipe = watched_recipe(**settings)
    recipe = replace(recipe, generation=replace(recipe.generation, **options))
    with pytest.raises(RecipeError) as caught:
        watched_run(tmp_path / "out", recipe)
    assert message in str(caught.value) and not (tmp_path / "out").exists()
