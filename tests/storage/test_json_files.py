"""A JSON file of a model is an object of usual depth, or refused with its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from dreamkit.errors import SourceError
from dreamkit.storage.json_files import MAX_DEPTH, is_deep, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_an_object_is_read_as_written_and_another_value_refused(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(value))
    if isinstance(value, dict):
        assert read_json(file) == value
    else:
        with pytest.raises(SourceError, match=r"config\.json: expected a JSON object, got "):
            read_json(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON: UnicodeDecodeError"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, f"expected at most {MAX_DEPTH} nested values"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", f"expected at most {MAX_DEPTH} nested values"),
        ('{"a": ' + "9" * 5000 + "}", "expected at most 80 digits in an integer, got 5,000"),
    ],
)
def test_an_invalid_file_is_refused_with_its_name(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"config\.json") as caught:
        read_json(tmp_path / "config.json")
    assert reason in str(caught.value) and len(str(caught.value)) < 1000


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("pipe", "expected a regular file, got a named pipe"),
        ("", "expected a regular file, got a folder"),
        ("none", "No such file"),
    ):
        with pytest.raises(SourceError, match=reason):
            read_json(tmp_path / name)


def test_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.truncate(tmp_path / "config.json", 10**12)
    with pytest.raises(
        SourceError, match=r"config\.json: expected at most 100,000,000 bytes, got 1,000,000,000,000"
    ):
        read_json(tmp_path / "config.json")


def test_depth_counts_nested_lists_and_objects() -> None:
    assert not is_deep({"a": [1]}, 2) and is_deep({"a": [1]}, 1)
    assert not any(is_deep(value, 1) for value in (None, True, 1.5, "text"))
