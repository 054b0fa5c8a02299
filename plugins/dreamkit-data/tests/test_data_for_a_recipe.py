"""Data where a command expects a recipe: the error has a recipe that reads them."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dreamkit import Registry
from dreamkit.cli.app import app

REGISTRY = Registry.load()
READERS = ("tars", "table", "coco", "mmc4", "pairs", "interleaved", "conversations")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["data", *arguments])


@pytest.mark.parametrize("command", ["check", "preview"])
@pytest.mark.parametrize("reader", READERS)
def test_the_recipe_of_the_error_reads_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    path = REGISTRY.get("dataset", reader).tiny_config(Path("data")).path
    result = invoke(command, str(path))
    message, *lines = str(result.exception).splitlines()[1:]
    assert (
        f"expected a recipe, got a {'folder' if path.is_dir() else 'file'} of data: '{path}'; write these"
        in message
    )
    assert f"the data set {reader} is a guess" in message
    Path("look.yaml").write_text("\n".join(lines) + "\n")
    result = invoke(command, "look.yaml")
    assert result.exit_code == 0, result.exception
    assert f" {reader} " in invoke("check", "look.yaml").stdout


def test_a_url_in_place_of_a_recipe_stays_as_it_is() -> None:
    error = str(invoke("check", "s3://bucket/a.parquet").exception)
    assert "got a URL of data: 's3://bucket/a.parquet'" in error
    assert '- {name: table, path: "s3://bucket/a.parquet"}' in error


def test_a_pattern_in_place_of_a_recipe_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    REGISTRY.get("dataset", "tars").tiny_config(tmp_path)
    error = str(invoke("check", "*{0..0}.tar").exception)
    assert "got a pattern of data" in error and '- {name: tars, path: "*{0..0}.tar"}' in error
