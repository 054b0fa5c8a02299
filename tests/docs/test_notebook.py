"""Check docs/digits.ipynb: its stored form, and that it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from digits_notebook import PATH, execute


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def right_counts(notebook: Any) -> list[int]:
    """Return how many of 100 digits the first model and the one with the swapped part read right."""
    return [int(count) for count in re.findall(r"^(\d+) of 100 right", printed(notebook), re.MULTILINE)]


def check(notebook: Any) -> None:
    first, swapped = right_counts(notebook)
    assert min(first, swapped) >= 90
    assert "Resampler: 16 -> 4 tokens" in printed(notebook)


def test_it_is_stored_with_small_outputs() -> None:
    assert PATH.stat().st_size < 200_000
    notebook = json.loads(PATH.read_text())
    check(notebook)
    assert sum("image/png" in o.get("data", ()) for c in notebook["cells"] for o in c.get("outputs", ())) == 5


@pytest.mark.full
def test_it_runs(tmp_path: Path) -> None:
    check(execute(tmp_path))
