"""Problems of recipes: each with its place, the expected type and the actual value."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dreamkit.registry.registry import Registry
from recipe_files import (
    base as base,
    complete_recipe,
    line_of,
    only_problem,
    problems,
    registry as registry,
    write,
)


def test_all_problems_are_reported_at_once(base: Path, registry: Registry) -> None:
    path = write(
        base.parent / "bad.yaml",
        """\
extends: base.yaml
modle: {}
model:
  language_model: {name: vicuna, system_promt: hello}
  vision_encoder: {name: klip, pretrained: a/b}
  condition_projector:
    bias: "no"
  dream_queries: 64.0
  adapters: [{target: language_mode}]
loss: {condition_drop: 1.5}
train:
  trainable: [visual_projectr, 3]
  packing: 1
  learning_rate: .nan
generation: 7
""",
    )
    messages = {(p.where, p.key): p.message for p in problems(path, registry, "train.seed=-1")}
    expected = {
        (f"{path}:2", "modle"): "unknown key 'modle'; did you mean 'model'?",
        (f"{path}:4", "model.language_model.system_promt"): "did you mean 'system_prompt'?",
        (f"{path}:5", "model.vision_encoder.name"): "unknown vision_encoder 'klip'; did you mean 'clip'?",
        (f"{path}:7", "model.condition_projector.bias"): "expected true or false, got 'no' (string)",
        (f"{path}:8", "model.dream_queries"): "expected an integer, got 64.0 (number)",
        (f"{path}:9", "model.adapters.0.target"): "did you mean 'language_model'?",
        (f"{path}:10", "loss.condition_drop"): "expected at least 0 and at most 1, got 1.5",
        (f"{path}:12", "train.trainable.0"): "did you mean 'visual_projector'?",
        (f"{path}:12", "train.trainable.1"): "expected one of language_model, ",
        (f"{path}:13", "train.packing"): "expected true or false, got 1 (integer)",
        (f"{path}:14", "train.learning_rate"): "expected a finite number, got nan",
        (f"{path}:15", "generation"): "expected a section, got 7 (integer)",
        ("command line", "train.seed"): "expected at least 0 and at most 4294967295, got -1",
    }
    assert messages.keys() == expected.keys()
    for place, message in expected.items():
        assert message in messages[place], place


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", True, "expected an integer, got true (boolean)"),
        ("train.steps", 0, "expected at least 1 and at most 1000000000, got 0"),
        ("train.steps", 2**63, "expected an integer of at most 64 bits"),
        ("train.learning_rate", "fast", "expected a number, got 'fast' (string)"),
        ("train.learning_rate", 0, "expected more than 0 and at most 100, got 0"),
        ("model.vision_encoder", {"name": "clip", "pretrained": "~nosuchuser/x"}, "invalid path"),
        ("model.vision_encoder", {"name": "clip", "pretrained": 300 * "x"}, "File name too long"),
        ("train.learning_rate", math.inf, "expected a finite number"),
        ("train.schedule", "cosin", "did you mean 'cosine'?"),
        ("train.trainable", "dream_queries", "expected a list of any of"),
        ("train.max_length", "long", "expected an integer, got 'long'"),
        ("model.adapters.0.modules", [1], "expected a string, got 1"),
        ("model.vision_encoder.config", [], "expected a section"),
        ("model.vision_encoder.config.patch_size", math.nan, "expected a finite number"),
        ("model.visual_projector", None, "expected a section with name, got null"),
        (
            "model.visual_projector",
            "linear",
            "expected a section with name, got 'linear' (string); write {name: linear}",
        ),
        ("model.visual_projector.depth", 2, "unknown key 'depth'"),
        ("model.special_tokens", {"dream_start": 3}, "expected a string, got 3 (integer)"),
        ("data", {}, "expected a list of sections with name, weight, shuffle, got a section"),
        ("data.0.path", 3, "expected a path"),
        ("data.0.direction", "drow", "did you mean 'draw'?"),
        ("init", 3, "expected a string, got 3 (integer)"),
    ],
)
def test_a_wrong_value_is_reported_with_the_expected_type(
    tmp_path: Path, registry: Registry, key: str, value: Any, message: str
) -> None:
    data = complete_recipe()
    *steps, last = (int(step) if step.isdigit() else step for step in key.split("."))
    section: Any = data
    for step in steps:
        section = section.setdefault(step, {}) if isinstance(section, dict) else section[step]
    section[last] = value
    problem = only_problem(write(tmp_path / "bad.yaml", data), registry)
    assert problem.key.startswith(key) and message in problem.message
    assert problem.where.startswith(f"{tmp_path}/bad.yaml:")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("loss: {lm: 0, denoising: 0}", "expected lm or denoising above 0"),
        ("model: {visual_projector: {name: mlp, depth: 0}}", "at least 1"),
    ],
)
def test_a_value_that_a_section_rejects_is_reported(
    base: Path, registry: Registry, section: str, message: str
) -> None:
    path = write(base.parent / "bad.yaml", f"extends: base.yaml\n{section}\n")
    problem = only_problem(path, registry)
    assert message in problem.message and problem.where == f"{path}:2"


def test_values_that_a_component_rejects_are_reported_at_their_keys(base: Path, registry: Registry) -> None:
    projector = "{name: mlp,\n  depth: 0,\n  hidden_dim: -1}"
    data = "[{name: digits,\n  documents: {\n  adding: 1,\n  reading: -1}}]"
    path = write(
        base.parent / "bad.yaml",
        f"extends: base.yaml\nmodel: {{visual_projector: {projector}}}\ndata: {data}\n",
    )
    assert {(p.where, p.key) for p in problems(path, registry)} == {
        (f"{path}:3", "model.visual_projector.depth"),
        (f"{path}:4", "model.visual_projector.hidden_dim"),
        (f"{path}:7", "data.0.documents.adding"),
        (f"{path}:8", "data.0.documents.reading"),
    }


@pytest.mark.parametrize(
    ("key", "around", "expected"),
    [
        ("model", None, "a section with language_model, vision_encoder"),
        ("model.language_model", "model:", "a section with name"),
        ("model.visual_projector", "model:", "a section with name"),
        ("model.visual_projector.name", "visual_projector:", "a string"),
        ("train.steps", "train:", "an integer"),
        ("data.0.path", "- name: pairs", "a path"),
    ],
)
def test_a_missing_key_is_reported_at_its_section(
    tmp_path: Path, registry: Registry, key: str, around: str | None, expected: str
) -> None:
    data = complete_recipe()
    section: Any = data
    *steps, last = key.split(".")
    for step in steps:
        section = section[int(step) if step.isdigit() else step]
    del section[last]
    path = write(tmp_path / "bad.yaml", data)
    problem = only_problem(path, registry)
    assert problem.key == key
    assert problem.message.startswith(f"missing; expected {expected}")
    assert problem.where == (f"{path}:1" if around is None else line_of(path, around))
