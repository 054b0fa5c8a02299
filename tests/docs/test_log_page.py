"""The page about the training log, compared line by line with real logs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import layouts
from runs import run

PAGE = Path(__file__).parents[2] / "docs/training.md"
STEPS = 6


def section() -> str:
    return PAGE.read_text().partition("## The log\n")[2].partition("\n### ")[0]


def test_the_page_lists_the_keys_of_a_line(tmp_path: Path) -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", section(), re.MULTILINE)
    parts = [f"grad_norm.{part}" for part in layouts.TRAINABLE]
    at = listed.index("grad_norm.PART")
    listed[at : at + 1] = parts
    example = re.search(r"```json\n(.*)\n```", section())
    assert example is not None
    run(tmp_path, layouts.recipe(steps=1))
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == listed == list(json.loads(example[1]))


def test_a_line_holds_what_the_page_describes(tmp_path: Path) -> None:
    recipe = layouts.recipe(steps=STEPS, warmup=2, batch_size=1)
    recipe = replace(recipe, loss=replace(recipe.loss, lm=0.5, denoising=3.0))
    steps = run(tmp_path / "steps", recipe).log
    lines = run(tmp_path / "lines", replace(recipe, train=replace(recipe.train, log_every=4))).log
    assert [line["step"] for line in lines] == [4, STEPS]
    assert any(None in step.values() for step in steps)  # a step without labels or images
    for line, covered in zip(lines, (steps[:4], steps[4:]), strict=True):
        for name in ("lm", "denoising"):
            values = [step[name] for step in covered if step[name] is not None]
            assert line[name] == (pytest.approx(sum(values) / len(values), rel=1e-5) if values else None)
        weighted = [0.5 * (step["lm"] or 0) + 3.0 * (step["denoising"] or 0) for step in covered]
        assert line["loss"] == pytest.approx(sum(weighted) / len(weighted), rel=1e-5)
        for name in ("learning_rate", "grad_norm"):
            assert line[name] == pytest.approx(covered[-1][name], rel=1e-5)
        assert (line["steps_per_second"] or 0) > 0
    assert [step["learning_rate"] for step in steps[:3]] == [
        0,
        recipe.train.learning_rate / 2,
        recipe.train.learning_rate,
    ]
