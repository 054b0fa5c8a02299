"""Parts of all kinds together: a few combinations that contain every pair of parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamkit.registry.registry import Registry
from product.parts import Combination, covering, every, parts
from product.table import page
from product.trial import trial

REGISTRY = Registry.load()
PARTS = parts(REGISTRY)
PAGE = Path(__file__).parents[2] / "docs" / "parts.md"


def test_the_page_of_results_is_current() -> None:
    """A run of all combinations writes it; this test compares the list of parts, and that none failed."""
    assert PAGE.read_text(encoding="utf-8") == page(PARTS, dict.fromkeys(every(PARTS), ""), REGISTRY)


# NumPy 2 warns of the conversion of tensors in diffusers' schedulers
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("combination", covering(PARTS), ids=str)
def test_a_combination_trains_saves_loads_and_generates(combination: Combination, tmp_path: Path) -> None:
    trial(combination, PARTS, REGISTRY, tmp_path / "checkpoint")
