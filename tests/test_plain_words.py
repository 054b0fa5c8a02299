"""Docstrings and messages keep to the style in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for folder in ("dreamkit", "plugins", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "releases" not in path.relative_to(ROOT).parts
]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RIDDLE = re.compile(r"(What|Whether|How|Why)\b")
# A word after a number in an f-string that looks like a plural noun, also behind an adjective.
PLURAL = re.compile(r" (?:(?:dream|nested|distinct|more|other|missing|new|small|large) )?([a-z-]+s)\b")
NOT_PLURALS = re.compile(
    "is|was|has|does|this|its|as|thus|less|plus|times|allows|comes|differs|excludes|exists|gives|imports|lacks|leads|"
    "lists|makes|names|provides|reads|takes|stands|besides"
)
# names, lists, and constants above 1
NOT_NUMBERS = re.compile(r"[A-Z_]+|len\([A-Z_]+\)|kind|self\.name|lengths|.*\.join\(.*|.*\bWORDS\b.*")
OTHER_FORM = re.compile(r"found, but|(is|are) wanted\b|need(s|ed)? mending|no .* is given")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the strings of `tree` but its docstrings."""
    documented = {line for line, _ in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno not in documented:
            yield node.lineno, node.value


def test_no_docstring_begins_as_a_question() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in MODULES
        for line, text in docstrings(ast.parse(path.read_text()))
        if RIDDLE.match(text)
    ]
    assert found == []


def test_messages_have_one_form() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in MODULES
        if "tests" not in path.parts
        for line, text in messages(ast.parse(path.read_text()))
        if OTHER_FORM.search(text)
    ]
    assert found == []


def plurals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield a number and the plural noun after it in each f-string, and words whose end depends on a condition."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in pairwise([*node.values, ast.Constant("")]):
            if not isinstance(value, ast.FormattedValue):
                continue
            source = ast.unparse(value.value)
            match = PLURAL.match(text.value) if isinstance(text, ast.Constant) else None
            if match and not NOT_PLURALS.fullmatch(match[1]) and not NOT_NUMBERS.fullmatch(source):
                yield node.lineno, f"{source}{match[0]}"
            if re.search(r"""['"]e?s['"]""", source):
                yield node.lineno, source


def test_a_number_before_a_noun_is_written_by_count() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in MODULES
        if "tests" not in path.parts
        for line, text in plurals(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f'{n} images'", ["n images"]),
        ("f'{n:,} dream queries of {m}'", ["n dream queries"]),
        ("f'at most {len(files)} files, got {k}'", ["len(files) files"]),
        ("""f"{n} row{'s' if n > 1 else ''}\"""", ["'s' if n > 1 else ''"]),
        ("""f"{n} row{'s' * (n != 1)}\"""", ["'s' * (n != 1)"]),
        ("f'{name} is here; {MOST} values'", []),
        ("f\"{count(n, 'image')} of {m}\"", []),
    ],
)
def test_plurals_finds_numbers_before_nouns(source: str, expected: list[str]) -> None:
    assert [text for _, text in plurals(ast.parse(source))] == expected
