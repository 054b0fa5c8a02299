"""Values in messages: each is shortened by `excerpt`, `describe_value` or `describe_error`."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import tiny
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.errors import DreamkitError
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from recipe_files import complete_recipe, leaves
from saved_models import REGISTRY, saved as saved

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


LONG = "\x1b[2J" + 3000 * "QUJD"
values = st.sampled_from([LONG, [LONG, LONG], {"k": LONG}, 10**90, 4000 * [1]])


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of `tree` with `value` at `path`."""
    if not path:
        return value
    copy = deepcopy(tree)
    section = copy
    for step in path[:-1]:
        section = section[step]
    section[path[-1]] = value
    return copy


def assert_short(read: Callable[[], object]) -> None:
    """Check that no line of the error that `read` raises, if any, is as long as the value."""
    try:
        read()
    except DreamkitError as error:
        longest = max(str(error).splitlines(), key=len)
        assert len(longest) < 1500, f"{longest[:200]} ... {longest[-200:]}"


def check(recipe: dict[str, Any], registry: Registry) -> None:
    fit(recipe_from_dict(recipe, registry), registry).require_valid()


RECIPE = complete_recipe() | {"init": "x"}


@given(st.sampled_from([path for path, _ in leaves(RECIPE)]), values)
def test_a_long_value_of_a_recipe_is_shown_shortened(path: tuple[Any, ...], value: Any) -> None:
    assert_short(lambda: check(changed(RECIPE, path, value), REGISTRY))


@given(st.data())
@settings(max_examples=50)
def test_a_long_value_of_a_manifest_is_shown_shortened(saved: Path, data: st.DataObject) -> None:
    file = saved / "dreamkit.json"
    before = file.read_text()
    manifest = json.loads(before)
    path = data.draw(st.sampled_from([path for path, _ in leaves(manifest)]))
    try:
        file.write_text(json.dumps(changed(manifest, path, data.draw(values))))
        assert_short(lambda: load_checkpoint(saved, REGISTRY))
    finally:
        file.write_text(before)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sources(tmp_path_factory.mktemp("sources"))


@given(st.data())
@settings(max_examples=50)
def test_a_long_value_of_a_pretrained_config_is_shown_shortened(sources: Path, data: st.DataObject) -> None:
    files = sorted(path for path in sources.rglob("*.json") if path.name != "tokenizer.json")
    file = data.draw(st.sampled_from(files))
    before = file.read_text()
    config = json.loads(before)
    path = data.draw(st.sampled_from([path for path, _ in leaves(config)]))
    try:
        file.write_text(json.dumps(changed(config, path, data.draw(values))))
        assert_short(lambda: check(tiny.on_sources(sources), REGISTRY))
    finally:
        file.write_text(before)
