"""Parts of all kinds together: a few combinations in which every two of them meet."""

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


def test_all_are_1050() -> None:
    """Six vision encoders, seven language models, five condition projectors and five image decoders."""
    assert [len(of_a_kind) for of_a_kind in PARTS.values()] == [6, 7, 5, 5]
    assert len(every(PARTS)) == 1050


def test_the_page_of_results_is_current() -> None:
    """It is written by a run of them all, which compares it too; here it has today's parts, and none that failed."""
    assert PAGE.read_text(encoding="utf-8") == page(PARTS, dict.fromkeys(every(PARTS), ""), REGISTRY)


# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("combination", covering(PARTS), ids=str)
def test_every_two_parts_meet(combination: Combination, tmp_path: Path) -> None:
    trial(combination, PARTS, REGISTRY, tmp_path / "checkpoint")
