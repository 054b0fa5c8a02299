"""Run docs/python.md, and compare its signatures and those of docs/reference.md with the code."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

import dreamkit

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text()
REFERENCE = (DOCS / "reference.md").read_text()


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for number, block in enumerate(blocks):
            exec(compile(block, f"docs/python.md[{number}]", "exec"), names)
    lines = output.getvalue().splitlines()
    assert any(line.startswith("is a ") for line in lines), "the trained model did not read the digit"
    scores = [line for line in lines if re.fullmatch(r"an? \w+: -\d+\.\d\d", line)]
    assert len(scores) == 3 and any(re.fullmatch(r"log probability: -\d+\.\d+", line) for line in lines)
    assert any(line.startswith("visual_projector ") for line in lines)
    assert any(line.startswith("command line | train.batchsize | ") for line in lines)
    for file in ("runs/python/log.jsonl", "runs/mlp/checkpoint/dreamkit.json", "copy/dreamkit.json"):
        assert (tmp_path / file).is_file()


SIGNATURES = re.findall(r"^\| `([\w.]+)\((.*?)\)` \|", PAGE.partition("## Signatures")[2], re.MULTILINE)


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES)
def test_a_signature_equals_that_of_the_code(name: str, parameters: str) -> None:
    value = dreamkit
    for attribute in name.split("."):
        value = getattr(value, attribute)
    signature = inspect.signature(value)
    unannotated = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    expected = str(signature.replace(parameters=unannotated, return_annotation=inspect.Signature.empty))
    assert f"({parameters})" == expected.replace("'", '"')


def test_the_reference_lists_every_public_name() -> None:
    listed = set(re.findall(r"\bdreamkit\.(\w+)", REFERENCE))
    assert set(dreamkit.__all__) <= listed
