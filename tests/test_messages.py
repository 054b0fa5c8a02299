"""Values in messages of the product: each is shortened by `excerpt` or `describe_value`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The contract kit shows the author of a part the whole input that fails, to reproduce it.
WHOLE = ("dreamkit/testing",)


def product_files() -> list[Path]:
    files = [*ROOT.glob("dreamkit/**/*.py"), *ROOT.glob("plugins/*/dreamkit_*/**/*.py")]
    return sorted(path for path in files if not path.is_relative_to(ROOT / WHOLE[0]))


def unbounded(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each `{value!r}` in an f-string, and of each `{repr(value)}` that is not in `excerpt`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FormattedValue) and (node.conversion != -1 or called(node.value, "repr")):
            yield node.lineno, ast.unparse(node.value)


def called(value: ast.AST, name: str) -> bool:
    """Return True if `value` calls `name` outside of `excerpt(...)`."""
    if (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id in (name, "excerpt")
    ):
        return value.func.id == name
    return any(called(child, name) for child in ast.iter_child_nodes(value))


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("raise DreamkitError(f'got {value!r}')", 1),
        ("raise DreamkitError(f'got {repr(value)[1:]}')", 1),
        ("raise DreamkitError(f'got {excerpt(repr(value))}')", 0),
        ("raise DreamkitError(f'got {describe_value(value)}')", 0),
    ],
)
def test_the_search_finds_values_that_are_not_shortened(source: str, count: int) -> None:
    assert len(list(unbounded(source))) == count


def test_messages_shorten_every_value_that_they_quote() -> None:
    """Use `describe_value(value)`, or `excerpt(repr(value))` without the type."""
    places = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in product_files()
        for line, text in unbounded(path.read_text())
    ]
    assert places == []
