"""Values of a wrong type in the sections of data sets: each message has the expected type and the value, once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest

from dreamkit.recipe.fields import expected_type
from dreamkit.recipe.sections import DataSection
from dreamkit.registry.registry import Registry
from dreamkit.storage.urls import Url
from recipe_files import complete_recipe, problems, registry as registry, write

WRONG: list[Any] = [3, 0.5, True, None, "zzz", "", [1], [], {"a": 1}, {"a": None}]
REGISTRY = Registry.load()
NAMES = list(REGISTRY.components("dataset"))


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_one_message_about_its_type(tmp_path: Path, name: str) -> None:
    config = REGISTRY.get("dataset", name).Config
    sections = []
    for field in (*dataclasses.fields(config), *dataclasses.fields(DataSection)):
        if field.name not in ("name", "config"):
            sections += [{"name": name, field.name: value} for value in WRONG]
    path = write(tmp_path / "bad.yaml", complete_recipe() | {"data": sections})
    for problem in problems(path, REGISTRY):
        number, key = int(problem.key.split(".")[1]), problem.key.split(".", 2)[2]
        message = problem.message
        if key.split(".")[0] not in sections[number]:
            assert message.startswith(("missing; expected ", "expected "))
            continue
        assert (
            message.startswith(("expected ", "unknown ")) and ", got " in message
        ) or "; known: " in message
        assert not ("; known: " in message and "expected one of" in message)
        assert "list of a " not in message and message.count(" or ") <= 2


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (list[Path], "a list of paths"),
        (Path | list[Path] | None, "a path, a list of paths or null"),
        (Path | Url | list[Path | Url], "a path, a URL or a list of paths or URLs"),
        (list[str | int], "a list of strings or integers"),
        (tuple[int, str], "a list of an integer, a string"),
        (tuple[int, int], "a list of 2 integers"),
        (list[tuple[int, int]], "a list of lists"),
        (tuple[bool, ...], "a list of true or false"),
        (list[Literal["a", "b"]], "a list of any of a, b"),
        (dict[str, float], "a section of numbers"),
        (dict[str, Any], "a section"),
        (dict[str, list[int]], "a section of lists"),
        (list[dict[str, Any]], "a list of sections"),
        (list[DataSection], "a list of sections with name, weight, shuffle"),
    ],
)
def test_types_are_named_in_the_plural_where_there_are_several(annotation: Any, words: str) -> None:
    assert expected_type(annotation) == words


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("path: [a, 3]", "path.1", "expected a path or a URL, got 3 (integer); put it in quotes"),
        ("path: ''", "path", "expected a path, got ''; write . for the folder of this file"),
        (
            "path: 3",
            "path",
            "expected a path, a URL or a list of paths or URLs, got 3 (integer); put it in quotes",
        ),
        ("path: a, caption: {txt: b}", "caption.txt", "expected a number, got 'b' (string)"),
        (
            "path: a, direction: drow",
            "direction",
            "expected one of draw, read, got 'drow' (string); did you mean 'draw'?",
        ),
        ("path: a, direction: x", "direction", "expected one of draw, read, got 'x' (string)"),
        ("path: a, filters: {w: 3}", "filters.w", "expected a section with least, most, got 3 (integer)"),
    ],
)
def test_the_message_of_a_value_is_exact(
    tmp_path: Path, registry: Registry, section: str, key: str, message: str
) -> None:
    text = f"extends: digits/stage1\ndata: [{{name: tars, {section}}}]\n"
    (problem,) = problems(write(tmp_path / "a.yaml", text), registry)
    assert (problem.key, problem.message) == (f"data.0.{key}", message)


def test_a_text_in_the_place_of_a_list_has_the_list(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "a.yaml", "extends: digits/stage1\ntrain: {trainable: dream_queries}\n")
    (problem,) = problems(path, registry)
    assert problem.message.endswith("got 'dream_queries' (string); write [dream_queries]")
