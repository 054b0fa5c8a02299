"""Paths in a recipe that need quotes: the message has the corrected line, which can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dreamkit.recipe.quotes import quotes_hint
from dreamkit.recipe.tree import parse
from dreamkit.registry.registry import Registry
from recipe_files import problems, registry as registry, write

HINT = "a path with braces or a leading * needs quotes: "


@pytest.mark.parametrize(
    ("text", "line", "corrected"),
    [
        ("path: {00000..00010}.tar", 1, "path: '{00000..00010}.tar'"),
        ("a: 1\npath: {a,b}/c.tar  # both", 2, "path: '{a,b}/c.tar'  # both"),
        ("path:\n  - x.tar\n  - {a,b}.tar", 3, "- '{a,b}.tar'"),
        ("{path: /data/{a,b}.tar}", 1, "{path: '/data/{a,b}.tar'}"),
        ("{path: ${oc.env:DATA}/{0..9}.tar, a: 1}", 1, "{path: '${oc.env:DATA}/{0..9}.tar', a: 1}"),
        ("path: [{a,b}.tar, x.tar]", 1, "path: ['{a,b}.tar', x.tar]"),
        ("path: {{a,b},c}.tar", 1, "path: '{{a,b},c}.tar'"),
        ("path: *.tar", 1, "path: '*.tar'"),
        ("path: [a.tar, *.tar]", 1, "path: [a.tar, '*.tar']"),
    ],
)
def test_the_corrected_line_is_in_the_message(text: str, line: int, corrected: str) -> None:
    _, (problem,) = parse(text, lambda line: f"file:{line}", Path())
    assert problem.where == f"file:{line}" and problem.message.startswith("invalid YAML: ")
    assert problem.message.endswith(f"; {HINT}{corrected}")
    assert parse(corrected, str, Path())[1] == []


@pytest.mark.parametrize(
    "text",
    ["path: {a: 1", "path: {a,b}.tar {", "a: {b}: c", "path: 'x {a,b}.tar", "init: a\tb: 2", "{a,b}: *"],
)
def test_other_errors_have_no_hint(text: str) -> None:
    _, (problem,) = parse(text, str, Path())
    assert "quotes" not in problem.message


@given(st.text("ab{}[],.*'\"#: \n\t$/-&!", max_size=40), st.integers(0, 4))
def test_a_hint_is_a_valid_line(text: str, line: int) -> None:
    hint = quotes_hint(text, line)
    if hint:
        lines = text.splitlines()
        lines[line] = hint.partition(HINT)[2]
        assert lines[line].count("'") > text.splitlines()[line].count("'")


def test_the_search_ends_on_lines_with_many_braces() -> None:
    for text in (
        "${a}" * 240,
        "{a}" * 300,
        "{{a}" * 240,
        "${a" * 300,
        "{a," * 30_000,
        "{a,b}" * 199 + ".tar",
    ):
        for end in ("", '"', " {"):
            parse(text + end, str, Path())
            quotes_hint(text + end, 0)


def test_braces_that_are_a_section_have_a_hint_with_file_and_line(tmp_path: Path, registry: Registry) -> None:
    path = write(tmp_path / "a.yaml", "extends: digits/stage1\ndata:\n  - {name: tars, path: {0..3}}\n")
    (problem,) = problems(path, registry)
    assert problem.where == f"{path}:3" and problem.key == "data.0.path"
    assert problem.message.endswith("got a section; a path with braces needs quotes: '{0..3}'")


def test_on_the_command_line_the_argument_has_two_kinds_of_quotes() -> None:
    _, (problem,) = parse("{0..3}.tar", lambda line: "command line", Path(), "data.0.path")
    assert problem.message.endswith(f"""; {HINT}"data.0.path='{{0..3}}.tar'\"""")
