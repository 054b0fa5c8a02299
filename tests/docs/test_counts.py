"""The counts in docs/benchmarks.md are current."""

from pathlib import Path

import pytest

from counts.section import TITLE, section

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


# NumPy 2 warns of the conversion of tensors in diffusers' schedulers
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_counts_equal_those_of_the_code() -> None:
    _, title, counts = PAGE.read_text(encoding="utf-8").partition(TITLE)
    assert title + counts == section(), "rewrite them with: python tests/counts"
