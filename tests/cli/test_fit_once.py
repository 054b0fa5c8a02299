"""A command infers the spec of each part once, also if it reads a cache and builds the model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import caches
import tiny
from dreamkit.build.fit_record import Fit
from dreamkit.recipe.sections import WITH_SOURCE

PARTS = [f"model.{key}" for key in (*WITH_SOURCE, "visual_projector", "condition_projector")]


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return a counter of the specs inferred, by the recipe key of the part."""
    count: Counter[str] = Counter()
    infer_spec = Fit.infer_spec

    def count_calls(self: Fit, kind: str, key: str, *args: Any, **widths: int) -> Any:
        count[key] += 1
        return infer_spec(self, kind, key, *args, **widths)

    monkeypatch.setattr(Fit, "infer_spec", count_calls)
    return count


@pytest.mark.parametrize("command", [["check"], ["plan"], ["train", "--out", "run"]], ids=lambda c: c[0])
@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "cached"])
def test_the_spec_of_each_part_is_inferred_once(
    command: list[str],
    cached: bool,
    run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inferred: Counter[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("cat.png")
    Path("pairs.jsonl").write_text(json.dumps({"image": "cat.png", "caption": "a cat"}) + "\n")
    recipe = caches.recipe(Path("cache") if cached else None, {"steps": 1, "batch_size": 1}).to_dict()
    recipe["data"] = [{"name": "pairs", "path": "pairs.jsonl", "direction": "draw"}]
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    if cached:
        assert run("cache", "tiny.yaml")[0] == 0
    inferred.clear()
    assert run(command[0], "tiny.yaml", *command[1:])[0] == 0
    assert inferred == dict.fromkeys(PARTS, 1)
