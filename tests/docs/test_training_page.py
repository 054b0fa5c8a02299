"""Run the commands of docs/training.md in their order, and compare its picture with real batches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

import update_picture
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from every_command import COMMANDS, split_command

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
OF_MODULE = "-m dreamkit "  # precedes the arguments of dreamkit in a line of torchrun


def test_the_commands_for_one_device_run_in_their_order(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in LINES if line.startswith("dreamkit train ")]
    outputs = []
    for line in lines:
        code, out, err = run(*shlex.split(line)[1:])
        assert code == 0, (line, err)
        outputs.append(out + err)
    assert "nothing was trained" in outputs[1]
    assert "train.steps was 20, is 30" in outputs[2]
    assert {path.name for path in (tmp_path / "runs/first").iterdir() if not path.name.startswith(".")} == {
        "log.jsonl",
        "run.json",
        "index.html",
        "checkpoints",
        "checkpoint",
    }


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("torchrun ")])
def test_a_command_for_several_devices_parses(line: str) -> None:
    before, _, arguments = line.partition(OF_MODULE)
    assert re.fullmatch(r"torchrun --nproc-per-node \d+ ", before)
    name, rest = split_command(shlex.split(arguments))
    context = COMMANDS[name].make_context(name, rest)
    recipe, overrides = context.params["recipe"], context.params["overrides"] or ()
    if recipe is None:
        assert context.params["resume"]
    else:
        assert load_recipe(recipe, overrides, Registry.load()).train.steps


def test_the_picture_shows_the_batches_of_today() -> None:
    stored = update_picture.PATH.read_text(encoding="utf-8")
    assert stored == update_picture.picture(), "rewrite it with: python tests/helpers/update_picture.py"
    ElementTree.fromstring(stored)
    assert f"| `train.global_batch` | {len(update_picture.LENGTHS)} |" in PAGE
    assert f"| `train.max_length` | {update_picture.ROW} |" in PAGE
