"""The counts in docs/benchmarks.md are current."""

from pathlib import Path

import pytest

from benchmarks.race import SHAPES, Shape
from counts.race import counted
from counts.section import TITLE, section

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


# NumPy 2 warns of the conversion of tensors in diffusers' schedulers
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_counts_equal_those_of_the_code() -> None:
    _, title, counts = PAGE.read_text(encoding="utf-8").partition(TITLE)
    assert title + counts == section(), "rewrite them with: python tests/counts"


@pytest.mark.parametrize("shape", SHAPES, ids=map(str, SHAPES))
def test_a_step_of_the_race_does_little_besides_the_work_of_its_documents(shape: Shape) -> None:
    padded, ours = counted(shape, False), counted(shape, True)
    assert padded.tokens == ours.tokens >= 0.95 * ours.rows * ours.width
    assert ours.masks == 0 < padded.masks
    assert 1.2 * ours.flops < padded.flops
    assert sum(ours.bytes.values()) < 0.85 * sum(padded.bytes.values())
