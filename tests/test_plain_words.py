"""Docstrings and messages keep to the style in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = [
    path
    for folder in ("dreamkit", "plugins", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "releases" not in path.relative_to(ROOT).parts
]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RIDDLE = re.compile(r"(What|Whether|How|Why)\b")
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
