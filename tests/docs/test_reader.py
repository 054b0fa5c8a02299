"""The reader of docs/data.md fulfils the contract of data sets, and has about 30 lines."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from dreamkit.testing import contracts
from meta.installing import hook, install

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
FILES = dict(
    re.findall(r"^```python\n# (dreamkit_notes/\S+|tests/\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
MOST_LINES = 36  # with the blank ones


def test_the_reader_fulfils_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FILES["dreamkit_notes/dataset.py"]
    assert len(source[source.index("class ") :].splitlines()) <= MOST_LINES
    install(tmp_path, "dreamkit_notes", hook("dataset", "notes", "dreamkit_notes.dataset:Notes"))
    (tmp_path / "dreamkit_notes" / "dataset.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(FILES["tests/test_contract.py"], names)
    example = contracts.tiny_dataset(names["Notes"], names["write"])
    report = contracts.verify("dataset", example)
    assert report.ok, str(report)
    assert all(outcome.result == "passed" for outcome in report.outcomes)
    folder = tmp_path / "notes"
    folder.mkdir()
    dataset = example(folder)
    texts = {dataset.sample(0, random.Random(seed)).text for seed in range(20)}
    assert (dataset[0].text, texts) == ("a blue square", {"a blue square", "a square"})
