"""Values in messages: each is shortened by `excerpt`, `describe_value` or `describe_error`."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import caches
import tiny
from dreamkit.build.fit import fit
from dreamkit.cache.manifest import CacheManifest
from dreamkit.cache.read import Cache
from dreamkit.cache.recipe_check import cache_problems
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.errors import DreamkitError, RecipeError, RecipeProblem
from dreamkit.recipe.loading import load_recipe
from recipe_files import changed, complete_recipe, leaves, write
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


FORGED = "\nFORGED"
LONG = FORGED + 3000 * "QUJD"
values = st.sampled_from([LONG, [LONG, LONG], {"k": LONG}, 10**90, 4000 * [1]])


@st.composite
def hostile(draw: st.DrawFn, tree: Any) -> Any:
    """Draw a copy of `tree` with a long value somewhere, or with a line break in a key."""
    path = draw(st.sampled_from([path for path, _ in leaves(tree)]))
    copy = changed(tree, path, draw(values))
    section = copy
    for step in path[:-1]:
        section = section[step]
    if path and isinstance(section, dict) and draw(st.booleans()):
        section[FORGED] = section.pop(path[-1])
    return copy


def assert_short(read: Callable[[], object]) -> None:
    """Check that an error of `read` has at most 80 characters of each value, and no line of a file."""
    try:
        read()
    except DreamkitError as error:
        message = str(error)
        assert not any(part in message for part in (FORGED, 21 * "QUJD", 81 * "0", 28 * "1, ")), message[
            :2000
        ]
        assert max(map(len, message.splitlines())) < 1500, message[:2000]


def check(recipe: dict[str, Any], folder: Path) -> None:
    path = write(folder / "recipe.yaml", recipe)
    fit(load_recipe(str(path), (), REGISTRY), REGISTRY).require_valid()


RECIPE = complete_recipe() | {"init": "x"}


@given(recipe=hostile(RECIPE))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_long_value_of_a_recipe_is_shown_shortened(tmp_path: Path, recipe: Any) -> None:
    assert_short(lambda: check(recipe, tmp_path))


@given(st.data())
@settings(max_examples=50)
def test_a_long_value_of_a_manifest_is_shown_shortened(saved: Path, data: st.DataObject) -> None:
    file = saved / "dreamkit.json"
    before = file.read_text()
    manifest = data.draw(hostile(json.loads(before)))
    try:
        file.write_text(json.dumps(manifest))
        assert_short(lambda: load_checkpoint(saved, REGISTRY))
    finally:
        file.write_text(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    caches.write(folder, caches.recipe())
    return folder


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_long_value_of_a_cache_is_shown_shortened(cache: Path, data: st.DataObject) -> None:
    file = cache / "cache.json"
    before = file.read_text()
    manifest = data.draw(hostile(json.loads(before)))
    fitted = fit(caches.recipe(cache), REGISTRY)
    try:
        file.write_text(json.dumps(manifest))
        assert_short(lambda: require(cache_problems(fitted)))
        assert_short(lambda: Cache(cache, CacheManifest.read(cache)))
    finally:
        file.write_text(before)


def require(problems: Sequence[RecipeProblem]) -> None:
    if problems:
        raise RecipeError(problems)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sources(tmp_path_factory.mktemp("sources"))


@given(st.data())
@settings(max_examples=50)
def test_a_long_value_of_a_pretrained_config_is_shown_shortened(sources: Path, data: st.DataObject) -> None:
    files = sorted(path for path in sources.rglob("*.json") if path.name != "tokenizer.json")
    file = data.draw(st.sampled_from(files))
    before = file.read_text()
    config = data.draw(hostile(json.loads(before)))
    try:
        file.write_text(json.dumps(config))
        assert_short(lambda: check(tiny.on_sources(sources), sources))
    finally:
        file.write_text(before)
