"""The command line: output, exit codes and imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import odd_parts
from dreamkit import cli
from dreamkit.registry.kinds import ShippedRecipe
from dreamkit.registry.registry import Registry
from tiny import recipe


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["plugins"], ["recipes"], ["check", "--help"], ["generate", "--help"], []],
)
def test_light_commands_import_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; import dreamkit; dreamkit.Document; dreamkit.Component\n"
        f"from dreamkit.cli import main; sys.argv = ['dreamkit', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, 2, None), end.code\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'peft', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout + process.stderr


def test_version_prints_the_version_of_the_distribution(run) -> None:
    from importlib.metadata import version

    assert run("--version") == (0, f"dreamkit {version('dreamkit-core')}\n", "")


def test_plugins_lists_components_by_distribution(run) -> None:
    code, out, _ = run("plugins")
    assert code == (1 if Registry.load().problems else 0)
    lines = [line.split() for line in out.splitlines()]
    assert ["projector", "mlp", "dreamkit-core"] in [line[:3] for line in lines]
    assert ["vision_encoder", "clip", "dreamkit-transformers"] in [line[:3] for line in lines]


def test_recipes_lists_all_shipped_recipes_and_their_files(run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    shipped = Registry.load().shipped_recipes()
    rows = [re.split("  +", line) for line in out.splitlines()[1:]]
    assert rows == [[name, recipe.origin, recipe.summary] for name, recipe in sorted(shipped.items())]
    code, out, _ = run("recipes", "--paths")
    assert code == 0
    listed = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert listed and all(Path(path).is_file() for path in listed.values())
    assert set(listed) == set(shipped)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("# First, as in 1.5. Second.\n# dreamkit train one\nmodel: {}\n", "First, as in 1.5."),
        ("# A sentence\n# on two lines\n#\n# dreamkit train one\n", "A sentence on two lines"),
        ("#\n# second line\n", ""),
        ("model: {}  # no header\n", ""),
        ("", ""),
    ],
)
def test_the_summary_of_a_recipe_is_the_first_sentence_of_its_header(
    tmp_path: Path, text: str, summary: str
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text)
    assert ShippedRecipe("one", path, "tiny 1.0", "tiny").summary == summary


@pytest.mark.parametrize("command", ["plugins", "recipes"])
def test_on_a_terminal_of_80_columns_only_summaries_are_wrapped(
    run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    rows = [re.split("  +", line) for line in run(command)[1].splitlines()[1:]]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    out = re.sub(r"\x1b\[[0-9;]*m", "", run(command)[1])
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    for *names, origin, summary in rows:
        assert origin in lines
        assert re.search("^  " + " +".join(map(re.escape, names)) + "  ", out, re.MULTILINE)
        assert re.search(r"\s+".join(map(re.escape, summary.split())), out)


def test_check_shows_the_parts_of_a_valid_recipe_and_writes_nothing(run, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    code, out, err = run("check", str(path), "model.dream_queries=5")
    assert (code, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "vision_encoder clip 16 px -> 4 x 16" in rows
    assert "condition_projector linear 5 x 32 -> 5 x 12" in rows
    assert list(tmp_path.iterdir()) == [path]


def test_check_lists_invalid_settings_and_misfitting_parts_together(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = odd_parts.registry()
    monkeypatch.setattr(Registry, "load", classmethod(lambda cls: registry))
    monkeypatch.chdir(tmp_path)
    invalid = recipe(
        **{"model.image_decoder.name": "fixedtokens", "model.dream_querys": 4, "loss": {"denoising": "much"}}
    )
    path = tmp_path / "invalid.yaml"
    path.write_text(yaml.safe_dump(invalid))
    code, out, err = run("check", "invalid.yaml", "train.steps=0")
    assert (code, out) == (2, "")
    assert err.startswith("dreamkit: the recipe has 5 problems:\n")
    assert "model.dream_querys: unknown key" in err and "did you mean 'dream_queries'?" in err
    assert "loss.denoising: expected a number, got 'much' (string)" in err
    assert "command line: train.steps: expected at least 1 and at most 1000000000, got 0" in err
    assert "train.trainable: missing" in err
    assert "model.condition_projector: expected 4 tokens for the image decoder" in err
    assert "Traceback" not in err and list(tmp_path.iterdir()) == [path]


def test_an_unknown_recipe_is_a_user_error(run) -> None:
    code, out, err = run("check", "digits/stage9")
    assert (code, out) == (2, "")
    assert "unknown recipe 'digits/stage9'" in err


def test_an_unknown_command_exits_with_code_2(run) -> None:
    assert run("chekc")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "file"], "file is not a checkpoint: it is a file"),
        (["inspect", "x" * 300], "File name too long"),
        (["generate", "x" * 300, "a"], "File name too long"),
        (["train", "digits/stage1", "--out", "file"], "file is a file; pass a new folder with --out"),
        (["train", "digits/stage1", "--out", "x" * 300], "File name too long"),
        (["train", "digits/stage1", "--out", "file/x"], "Not a directory"),
        (["train", "digits/stage1", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["demo", "--out", "file"], "file is a file"),
    ],
)
def test_an_unusable_path_is_a_one_sentence_error_and_nothing_is_written(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith("dreamkit: ") and message in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_os_error_without_a_path_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no space")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="no space"):
        cli.main()


def test_inspect_prints_nothing_of_an_invalid_manifest(run, tmp_path: Path) -> None:
    manifest = dict.fromkeys(("dreamkit", "recipe", "components", "tokens", "sources", "parts", "files"))
    (tmp_path / "dreamkit.json").write_text(json.dumps({"format": 1, **manifest}))
    code, out, err = run("inspect", str(tmp_path))
    assert (code, out) == (2, "")
    assert "components: expected an object, got null" in err


def test_new_plugin_without_a_kind_lists_the_kinds(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("new-plugin", "dreamkit-wave") == (
        2,
        "",
        "dreamkit: missing --kind: choose the component that dreamkit-wave provides:\n"
        "    vision-encoder  a small vision transformer\n"
        "    language-model  a small transformer that writes bytes\n"
        "    projector       averages neighbouring tokens\n"
        "    image-decoder   a small rectified flow on pixels\n"
        "    dataset         texts, each beside the image that it describes\n",
    )
    assert "[vision-encoder|language-model|projector|image-decoder|dataset]" in run("new-plugin", "--help")[1]
    assert not list(tmp_path.iterdir())
