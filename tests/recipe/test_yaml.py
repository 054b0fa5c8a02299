"""YAML files: scalars of YAML 1.2, and errors about files that are not recipes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dreamkit.recipe.tree import Broken, parse
from dreamkit.registry.registry import Registry
from recipe_files import problems, registry as registry, write

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_: -#", max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values, st.booleans())
@settings(deadline=None)
def test_json_is_read_as_yaml(value: Any, ensure_ascii: bool) -> None:
    tree, errors = parse(json.dumps(value, ensure_ascii=ensure_ascii), lambda line: f"file:{line}", Path())
    assert errors == []
    assert tree.plain() == value and repr(tree.plain()) == repr(value)  # repr: 1 is not 1.0 and not True


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E3", 1000.0), ("+.5", 0.5), ("0x1F", 31), ("0o17", 15), ("017", 17), ("-3", -3)]
    + [(text, text) for text in ("yes", "off", "12:30", "2026-01-01", "1_000", "e5", "0b1", ".", "<<")]
    + [("~", None), ("", None), ("True", True), ("-.inf", -math.inf), ("'3'", "3")],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    tree, errors = parse(text, lambda line: f"file:{line}", Path())
    assert errors == [] and tree.plain() == value and type(tree.plain()) is type(value)


@given(
    st.sampled_from(["str", "int", "float", "bool", "null", "map", "seq", "binary", "set", "timestamp", "x"]),
    st.sampled_from(["[1]", "{}", "{a: 1}", "x", "1", "''", "true", "[!!int [2]]", "{!!int [2]: 1}"]),
)
def test_any_tag_is_read_or_reported(tag: str, value: str) -> None:
    tree, errors = parse(f"\nkey: !!{tag} {value}\n", lambda line: f"file:{line}", Path())
    assert isinstance(tree.value, dict)
    assert all(error.where == "file:2" and error.message for error in errors)
    assert errors or not isinstance(tree.value["key"].value, Broken)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected sections such as 'model:', got null"),
        ("# nothing\n", 1, "expected sections such as 'model:', got null"),
        ("[model]\n", 1, "got a list of length 1"),
        ("3\n", 1, "got 3 (integer)"),
        ("model: {\n", 2, "invalid YAML"),
        ("model:\n\ttrain: 3\n", 2, "invalid YAML: found a tab; use spaces"),
        ("init: a\tb: 2\n", 1, "invalid YAML: found a tab; use spaces"),
        ("a: 1\n---\nb: 2\n", 2, "invalid YAML"),
        ("a: \0\n", 1, "invalid YAML"),
        ("init: a\ninit: b\n", 2, "duplicate key, first set at {path}:1"),
        ("a: &a {b: 1}\ntrain:\n  <<: *a\n", 3, "'<<' does not merge here"),
        ("3: a\n", 1, "expected a string as key, got '3'"),
        ("? [a]\n: b\n", 1, "expected a string as key, got a list"),
        ("init: !!python/object:os.system {}\n", 1, "cannot read a section as !!python/object"),
        ("loss:\n  lm: !!str [1]\n", 2, "cannot read a list as !!str; correct the value or remove the tag"),
        ("loss:\n  lm: !!int [1]\n", 2, "cannot read a list as !!int"),
        ("loss:\n  lm: !!float {a: 1}\n", 2, "cannot read a section as !!float"),
        ("loss:\n  lm: !!bool {}\n", 2, "cannot read a section as !!bool"),
        ("loss:\n  lm: !!null [1]\n", 2, "cannot read a list as !!null"),
        ("init: !!null abc\n", 1, "cannot read 'abc' as !!null"),
        ("init: !!int 1_0\n", 1, "cannot read '1_0' as !!int"),
        ("init: !!map abc\n", 1, "cannot read 'abc' as !!map"),
        ("? !!str [a]\n: b\n", 1, "expected a string as key, got a list"),
        ('a: 1\n"\\ud800": b\n', 2, "expected valid characters, got the lone surrogate"),
        ('loss:\n  lm: "\\ud800"\n', 2, "expected valid characters, got the lone surrogate"),
        ('init: !!str "\\udc00\\ud800"\n', 1, "expected valid characters, got the lone surrogate"),
        ('a: 1\n"b\\nc": 1\n', 2, r"expected a key without control characters, got 'b\nc'"),
        ("a: 1\nb: \x7f\n", 2, "invalid YAML: expected printable characters, got '\\x7f'"),
        ('a: 1\nb: "\\U00110000"\n', 2, "invalid YAML: an escape in double quotes that names no character"),
        ('a: 1\n"\\UFFFFFFFF": 1\n', 2, "invalid YAML: an escape in double quotes that names no character"),
        ("init: " + 100_000 * "x" + "\n", 1, "expected at most 100000 characters"),
        ("init: !!int abc\n", 1, "cannot read '"),
        ("init: &a [*a]\n", 1, "this alias refers to a value that contains it"),
        ("init: " + 60 * "[" + 60 * "]" + "\n", 1, "expected at most 50 levels of nesting"),
        ("init: " + 3000 * "[" + "\n", 1, "nested too deeply"),
        ("init: *a\n", 1, "invalid YAML"),
    ],
)
def test_an_invalid_file_is_reported(
    tmp_path: Path, registry: Registry, text: str, line: int, message: str
) -> None:
    path = write(tmp_path / "bad.yaml", text)
    first = problems(path, registry)[0]
    assert first.where == f"{path}:{line}"
    assert message.format(path=path) in first.message


def test_a_binary_file_is_reported(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot read the file" in problems(path, registry)[0].message


def test_exploding_aliases_are_reported(tmp_path: Path, registry: Registry) -> None:
    doubling = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    path = write(tmp_path / "bad.yaml", f"a0: &a0 [1]\n{doubling}")
    assert any("expected at most 5000 values" in problem.message for problem in problems(path, registry))
