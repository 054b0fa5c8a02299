"""An update is named by `global_batch` and `micro_batch`, or by `batch_size` and `accumulation` of earlier recipes."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.recipe.sections import TrainSection
from dreamkit.registry.registry import Registry
from recipe_files import base as base, only_problem, registry as registry, write

OLD = "train: {batch_size: 3, accumulation: 2}"
NEW = "train: {global_batch: 8, micro_batch: 2}"


def section(**division: int) -> TrainSection:
    return TrainSection(trainable=(), steps=1, **division)


def test_both_names_of_an_update_are_an_error(base: Path, registry: Registry) -> None:
    path = write(base.parent / "both.yaml", "extends: base.yaml\ntrain: {global_batch: 8, accumulation: 2}\n")
    problem = only_problem(path, registry)
    assert problem.key == "train"
    assert problem.message.startswith("expected global_batch alone, got accumulation, too; remove the latter")
    problem = only_problem(base, registry, "train.micro_batch=8", "train.batch_size=2")
    assert "expected micro_batch alone, got batch_size, too" in problem.message


def test_an_update_without_a_size_is_an_error(base: Path, registry: Registry) -> None:
    for division in ("micro_batch: 2", "accumulation: 2"):
        text = base.read_text().replace("batch_size: 2", division)
        problem = only_problem(write(base.parent / "none.yaml", text), registry)
        assert problem.key == "train" and "missing global_batch: name the number" in problem.message


@pytest.mark.parametrize(("below", "above"), [(OLD, NEW), (NEW, OLD)])
def test_a_recipe_above_replaces_the_division_below(
    base: Path, registry: Registry, below: str, above: str
) -> None:
    write(base.parent / "below.yaml", f"extends: base.yaml\n{below}\n")
    path = write(base.parent / "above.yaml", f"extends: below.yaml\n{above}\n")
    expected = {"batch_size": 3, "accumulation": 2, "global_batch": None, "micro_batch": None}
    if above == NEW:
        expected = {"batch_size": None, "accumulation": None, "global_batch": 8, "micro_batch": 2}
    recipe = load_recipe(str(path), (), registry)
    assert {name: getattr(recipe.train, name) for name in expected} == expected
    assert recipe_from_dict(recipe.to_dict(), registry, where="again") == recipe
    setting = "train.batch_size=5" if above == NEW else "train.global_batch=5"
    assert load_recipe(str(path), (setting,), registry).train.update_documents(1) == 5


@given(st.integers(1, 99), st.integers(1, 9), st.integers(1, 9))
def test_the_passes_hold_all_rows(rows: int, size: int, processes: int) -> None:
    new, old = section(global_batch=rows, micro_batch=size), section(batch_size=size, accumulation=4)
    assert 0 <= new.passes(rows) * size - rows < size
    assert old.passes(rows) == min(4, rows) and section(batch_size=size).passes(rows) == 1
    assert section(global_batch=rows).passes(rows) == 1
    assert new.update_documents(processes) == rows
    assert old.update_documents(processes) == size * 4 * processes
