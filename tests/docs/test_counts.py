"""The counts of docs/benchmarks.md are those of today's code."""

from pathlib import Path

import pytest

from counts.section import TITLE, section

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_page_is_current() -> None:
    """It is written by `python tests/counts`."""
    _, title, counts = PAGE.read_text(encoding="utf-8").partition(TITLE)
    assert title + counts == section()
