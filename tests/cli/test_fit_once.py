"""A command asks each part of a recipe for its spec once, also where it reads a cache, and builds the model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import caches
import tiny
from dreamkit import cli
from dreamkit.build.fit_record import Fit
from dreamkit.recipe.sections import WITH_SOURCE

PARTS = [f"model.{key}" for key in (*WITH_SOURCE, "visual_projector", "condition_projector")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, by the key of its section, how often a part is asked."""
    count: Counter[str] = Counter()
    infer_spec = Fit.infer_spec

    def counted(self: Fit, kind: str, key: str, *args: Any, **widths: int) -> Any:
        count[key] += 1
        return infer_spec(self, kind, key, *args, **widths)

    monkeypatch.setattr(Fit, "infer_spec", counted)
    return count


@pytest.mark.parametrize("command", [["check"], ["plan"], ["train", "--out", "run"]], ids=lambda c: c[0])
@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "cached"])
def test_each_part_is_asked_for_its_spec_once(
    command: list[str], cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Counter[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save("cat.png")
    Path("pairs.jsonl").write_text(json.dumps({"image": "cat.png", "caption": "a cat"}) + "\n")
    described = caches.recipe(Path("cache") if cached else None, {"steps": 1, "batch_size": 1}).to_dict()
    described["data"] = [{"name": "pairs", "path": "pairs.jsonl", "direction": "draw"}]
    Path("tiny.yaml").write_text(yaml.safe_dump(described))
    if cached:
        assert run(monkeypatch, "cache", "tiny.yaml") == 0
    asked.clear()
    assert run(monkeypatch, command[0], "tiny.yaml", *command[1:]) == 0
    assert asked == dict.fromkeys(PARTS, 1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dreamkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)
