"""Text in every encoding: none of the terminal and none of the command line is a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import layouts
import tiny
from dreamkit.build.build import build_model
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.cli import main
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

BYTE = "\udce9"  # Python's stand-in for the byte 0xe9, which is not UTF-8
ENCODINGS = ["ascii", "latin-1", "cp437", "shift_jis", "utf-16", "utf-8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with characters that few encodings have."""
    data = [{"name": "pairs", "path": f"caf{BYTE}/猫"}]
    changed = tiny.recipe(data=data, train=layouts.recipe().to_dict()["train"])
    changed["model"]["language_model"]["system_prompt"] = "猫 ä ▁"
    folder = tmp_path_factory.mktemp("saved") / "ä猫"
    save_checkpoint(build_model(recipe_from_dict(changed, Registry.load()), Registry.load()), folder)
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_of_the_terminal_prints_all_text(
    encoding: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [
        ["inspect", str(checkpoint)],
        ["generate", str(checkpoint), "猫 ä", "--max-images", "1", "--max-tokens", "8", "--out", "猫"],
        ["check", "猫.yaml"],
        ["plugins"],
    ]
    for command in commands:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        monkeypatch.setattr("sys.argv", ["dreamkit", *command])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in ((2,) if command[0] == "check" else (0, None))
        for stream in (out, err):
            stream.flush()
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)


def test_a_process_with_the_locale_c_prints_all_text(tmp_path: Path) -> None:
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    process = subprocess.run(
        [sys.executable, "-m", "dreamkit", "check", "ä猫.yaml"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    assert process.returncode == 2
    assert b"unknown recipe" in process.stderr and b"Traceback" not in process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", f"{BYTE}.yaml"],
        ["check", "digits/stage1", f"train.cache={BYTE}"],
        ["check", "digits/stage1", f"{BYTE}=1"],
        ["check", "digits/stage1", f"data.0.{BYTE}=1"],
        ["check", "digits/stage1", r'generation.scheduler="\ud800"'],
        ["check", "digits/stage1", BYTE],
        ["train", "digits/stage1", "--out", f"run{BYTE}"],
        ["cache", "digits/stage1", "--out", f"cache{BYTE}"],
        ["inspect", BYTE],
        ["generate", "CHECKPOINT", f"a {BYTE} b"],
        ["generate", "CHECKPOINT", "a \ud800 b", "--chat"],
        ["generate", "CHECKPOINT", "a <image>", "--image", f"{BYTE}.png"],
        ["generate", "CHECKPOINT", "a", "--out", f"out{BYTE}"],
        ["generate", "CHECKPOINT", "a", "--stop", BYTE],
        ["generate", "CHECKPOINT", "a", "--negative-prompt", BYTE],
        ["generate", BYTE, "a"],
        ["merge-adapters", "CHECKPOINT", BYTE],
        ["import-published", BYTE, "imported"],
        ["new-plugin", f"dreamkit-{BYTE}", "--kind", "projector"],
        ["new-plugin", "dreamkit-a", "--kind", "projector", "--author", BYTE],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_a_lone_surrogate_on_the_command_line_is_an_error_that_writes_nothing(
    run, arguments: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(str(checkpoint) if name == "CHECKPOINT" else name for name in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("dreamkit: ") and BYTE not in err
    assert not list(tmp_path.iterdir())


def test_an_image_whose_name_is_not_utf_8_is_read(
    run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture(0).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/\xe9.png")
    arguments = ["a <image>", "--image", f"{BYTE}.png", "--max-tokens", "1", "--max-images", "0"]
    assert run("generate", checkpoint, *arguments, "--out", "out")[0] == 0


def test_data_in_a_folder_whose_name_is_not_utf_8_is_read(run, tmp_path: Path) -> None:
    folder = Path(f"{tmp_path}/{BYTE}")
    folder.mkdir()
    tiny.picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(folder / f"a{BYTE}.png")
    (folder / f"a{BYTE}.txt").write_text("a cat")
    train = {"trainable": ["visual_projector"], "steps": 1, "batch_size": 1}
    recipe = tiny.recipe(data=[{"name": "pairs", "path": ".", "direction": "read"}], train=train)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = run("train", folder / "recipe.yaml", "--out", tmp_path / "run")
    assert code == 0, err
    path = Manifest.read(tmp_path / "run/checkpoint").recipe["data"][0]["path"]
    assert path == str(folder)


def test_a_manifest_with_a_lone_surrogate_in_a_string_is_refused(
    run, checkpoint: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (path for path in checkpoint.rglob("*") if path.is_file()):
        (copy / file.relative_to(checkpoint)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(checkpoint)).symlink_to(file)
    content = json.loads((checkpoint / Manifest.FILE).read_text(encoding="utf-8"))
    content["recipe"]["model"]["language_model"]["system_prompt"] = "\ud800"
    (copy / Manifest.FILE).unlink()
    (copy / Manifest.FILE).write_text(json.dumps(content))
    code, out, err = run("generate", copy, "a", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "model.language_model.system_prompt: expected valid characters, got the lone surrogate" in err
