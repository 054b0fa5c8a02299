"""Check docs/digits.ipynb: its stored outputs, and that it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from digits_notebook import PATH, execute


def text_output(notebook: Any) -> str:
    """Return all text that the cells print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def right_counts(notebook: Any) -> list[int]:
    """Return how many of 100 digits the first model reads right, and how many the model with the swapped part."""
    return [int(count) for count in re.findall(r"^(\d+) of 100 right", text_output(notebook), re.MULTILINE)]


def assert_results(notebook: Any) -> None:
    first, swapped = right_counts(notebook)
    assert min(first, swapped) >= 90
    assert "Resampler: 16 -> 4 tokens" in text_output(notebook)


def test_the_stored_notebook_has_small_and_correct_outputs() -> None:
    assert PATH.stat().st_size < 200_000
    notebook = json.loads(PATH.read_text())
    assert_results(notebook)
    assert sum("image/png" in o.get("data", ()) for c in notebook["cells"] for o in c.get("outputs", ())) == 5


@pytest.mark.full
def test_the_notebook_runs(tmp_path: Path) -> None:
    assert_results(execute(tmp_path))
