"""Any mutation of a valid recipe is a recipe that builds, or an error with a place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.errors import RecipeError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import draft_recipe, load_recipe
from dreamkit.registry.registry import Registry
from recipe_files import base as base, complete_recipe, leaves, registry as registry

VALUES = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        3,
        2.5,
        math.nan,
        math.inf,
        10**30,
        int(5000 * "f", 16),
        "",
        "~",
        "~nosuchuser/x",
        "./x",
        "pkg:x/y",
        "../" + 300 * "x",
        5000 * "x/",
        "x",
        "linear",
        "clip",
        "3",
        "${nowhere}",
        "${model.dream_queries}",
        [],
        [1],
        ["x"],
        {},
        {"name": "linear"},
        {"x": 1},
        [{"name": "pairs"}],
    ]
)


@st.composite
def mutated_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Generate a valid recipe with one to three values dropped, renamed, replaced, nested or swapped."""
    data: Any = {"": complete_recipe()}
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path, _ in leaves(data) if len(path) > 1]
        if not places:
            break
        (*steps, last), (*other_steps, other_last) = (
            draw(st.sampled_from(places)),
            draw(st.sampled_from(places)),
        )
        section, other = at(data, steps), at(data, other_steps)
        match draw(st.sampled_from(["drop", "rename", "replace", "nest", "wrap", "swap"])):
            case "drop":
                del section[last]
            case "rename" if isinstance(section, dict):
                new = draw(
                    st.sampled_from(
                        [f"{last}s", last[1:], last.upper(), "name", "config", "pretrained", "depth"]
                    )
                )
                section[new] = section.pop(last)
            case "nest":
                section[last] = {draw(st.sampled_from([str(last), "x"])): section[last]}
            case "wrap":
                section[last] = [section[last]]
            case "swap" if [*steps, last] != [*other_steps, other_last][: len(steps) + 1] and [
                *other_steps,
                other_last,
            ] != [*steps, last][: len(other_steps) + 1]:
                section[last], other[other_last] = other[other_last], section[last]
            case _:
                section[last] = draw(VALUES)
    return data[""] if isinstance(data.get(""), dict) else {"": data.get("")}


def at(data: Any, steps: list[Any]) -> Any:
    for step in steps:
        data = data[step]
    return data


def to_yaml(value: Any) -> str:
    """Return a tree as YAML; integers that are too long for decimal digits are hexadecimal."""
    long = {value for _, value in leaves(value) if isinstance(value, int) and abs(value) >= 10**100}
    names = {number: f"long{index}" for index, number in enumerate(long)}

    def with_names(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_names(item) for key, item in value.items()}
        if isinstance(value, list):
            return [with_names(item) for item in value]
        return names.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    text = yaml.safe_dump(with_names(value), sort_keys=False)
    for number, name in names.items():
        text = text.replace(name, hex(number))
    return text


@st.composite
def override_lists(draw: st.DrawFn) -> list[str]:
    """Generate up to two overrides of keys in the recipe, or of similar keys."""
    keys = [".".join(map(str, path)) for path, _ in leaves(complete_recipe()) if path]
    texts = []
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(keys)) + draw(st.sampled_from(["", "", "", ".0", ".x", ".name"]))
        value = draw(VALUES)
        long = isinstance(value, int) and abs(value) > 10**100
        texts.append(f"{key}={hex(value) if long else json.dumps(value)}")
    return texts


@given(mutated_recipes(), override_lists(), st.sampled_from(["whole", "extending", "extended"]))
@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_mutation_builds_or_is_an_error(
    tmp_path: Path, registry: Registry, data: dict[str, Any], overrides: list[str], split: str
) -> None:
    path, other = tmp_path / "mutated.yaml", tmp_path / "other.yaml"
    base, own = {"whole": ({}, data), "extending": (complete_recipe(), data), "extended": (data, {})}[split]
    other.write_text(to_yaml(base))
    path.write_text("extends: other.yaml\n" + (to_yaml(own) if own else ""))
    lines = {str(file): len(file.read_text().splitlines()) for file in (path, other)}
    draft, reading = draft_recipe(str(path), overrides, registry)
    reported = [*reading, *(fit(draft, registry).problems if draft is not None else [])]
    try:
        recipe = load_recipe(str(path), overrides, registry)
        model = build(fit(recipe, registry))
    except RecipeError as error:
        assert reported and set(error.problems) <= set(reported), "check reports every problem of building"
        for problem in reported:
            file, _, line = problem.where.rpartition(":")
            assert problem.where == "command line" or 1 <= int(line) <= lines[file], problem
            assert problem.key and problem.message and str(problem).encode(), problem
        return
    assert isinstance(model, DreamModel) and reported == []
    if overrides or split != "whole":
        return
    # no value is ignored: each value of the file is in the recipe
    resolved = recipe.to_dict()
    for steps, value in leaves(data):
        if not isinstance(value, dict | list) and "${" not in str(value):
            actual = at(resolved, list(steps))
            assert actual == value or str(actual).endswith(f"/{str(value).removeprefix('./')}"), (
                steps,
                value,
                actual,
            )
