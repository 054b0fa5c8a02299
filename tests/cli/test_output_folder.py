"""The folder that a command writes: its path is not empty, and no other command writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamkit.storage.locks import exclusive
from every_command import COMMANDS
from failing_writes import content

PUBLISHED = Path(__file__).parents[1] / "reference" / "published-sd" / "checkpoint"
# the arguments of each command before its folder
WRITING = {
    "train": ["digits/stage1", "--out"],
    "cache": ["digits/stage1", "--out"],
    "demo": ["--out"],
    "generate": ["checkpoint", "a prompt", "--out"],
    "new-plugin": ["dreamkit-wave", "--kind", "projector", "--out"],
    "import-published": [str(PUBLISHED)],
    "merge-adapters": ["checkpoint"],
}


def test_each_command_that_writes_a_folder_is_tested() -> None:
    files = {"data preview", "runs diff"}  # their --out is a file
    assert WRITING.keys() | files == {
        name for name, command in COMMANDS.items() if "out" in {one.name for one in command.params}
    }


@pytest.mark.parametrize("command", WRITING)
def test_an_empty_path_is_refused(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(command, *WRITING[command], "")
    assert (code, out) == (2, "") and "expected a path, got ''" in err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", WRITING)
def test_a_folder_that_another_command_writes_is_refused(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with exclusive(tmp_path / "out"):
        before = content(tmp_path)
        code, out, err = run(command, *WRITING[command], "out")
        assert (code, out) == (2, "")
        assert err.endswith(
            "out is being written by another dreamkit command; wait until that ends, or name another folder\n"
        )
        assert content(tmp_path) == before
