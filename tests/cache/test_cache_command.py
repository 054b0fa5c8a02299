"""`dreamkit cache`, and what other commands say of a cache."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

import layouts
import tiny
from dreamkit import cli


@pytest.fixture
def dreamkit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs `dreamkit ARGUMENTS` in a folder with a recipe and data of its own: exit code, output, errors."""
    train = {"trainable": layouts.TRAINABLE, "steps": 2, "batch_size": 2, "log_every": 1}
    data = [{"name": "pairs", "path": "captions.jsonl"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny.recipe(train=train, data=data)))
    for number in range(3):
        tiny.picture(number % 2).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "caption": "a picture"}) for number in range(3)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dreamkit", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_recipe_is_cached_checked_planned_and_trained_from(dreamkit, tmp_path: Path) -> None:
    code, out, err = dreamkit("cache", "recipe.yaml", "--out", "kept")
    assert code == 0, err
    assert out.splitlines() == [
        "latents (pictures: 2), 6.4 kB",
        "wrote kept; train with train.cache=kept",
    ]  # two of the three are one; none is read
    assert (
        "caching" in err and "3/3 2 pictures" in err and "no features: the data has no image to read" in err
    )
    each = 2 * 4 * 8 * 8 * 4 + 16  # mean and standard deviation in float32, and a key
    assert "features take 272 bytes, latents take 2.1 kB a picture; 3 documents: 7.0 kB at most" in err
    assert each == 2064 and " are free\n" in err
    told = f"read from {tmp_path / 'kept'}: latents (pictures: 2, image_decoder does not encode)"
    for command in ("check", "plan"):
        code, out, _ = dreamkit(command, "recipe.yaml", "train.cache=kept")
        assert code == 0 and out.splitlines()[-1] == told
    code, out, err = dreamkit("inspect", "kept")
    assert code == 0 and "every file is intact" in out
    held = r"mean float32 \[4, 8, 8\], std float32 \[4, 8, 8\]"
    assert re.search(rf"latents +2 +{held} +6.4 kB +image_decoder stable-diffusion +float32", out)
    code, out, err = dreamkit("train", "recipe.yaml", "train.cache=kept", "--out", "run")
    assert code == 0 and told in err and "may lack" not in err

    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text() + "init: run/checkpoint\n")
    arguments = ["cache", "recipe.yaml", "train.cache=kept", "train.trainable=[vision_encoder]"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    code, out, err = dreamkit(*arguments)
    assert (code, out) == (2, "") and err.endswith(
        "kept is not empty; name a new folder by --out, or replace the cache in it by --overwrite\n"
    )
    assert "caching" not in err and before == {p.name: p.read_bytes() for p in (tmp_path / "kept").iterdir()}
    code, out, err = dreamkit(*arguments, "--overwrite")
    kept = tmp_path / "kept"
    assert code == 0 and out.splitlines()[-1] == f"replaced {kept}; train with train.cache={kept}"
    assert "no features: vision_encoder learns (train.trainable and model.adapters)" in err
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "cache.json",
        "latents-00000.safetensors",
    ]


def test_a_cache_that_is_missing_is_told_with_its_place(dreamkit, tmp_path: Path) -> None:
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("train:\n", "train:\n  cache: nowhere\n"))
    line = 1 + (tmp_path / "recipe.yaml").read_text().splitlines().index("  cache: nowhere")
    said = f"recipe.yaml:{line}: train.cache: {tmp_path / 'nowhere'} is not a cache: there is no such folder"
    for arguments in (
        ["check", "recipe.yaml"],
        ["plan", "recipe.yaml"],
        ["train", "recipe.yaml", "--out", "run"],
    ):
        code, out, err = dreamkit(*arguments)
        assert (code, out) == (2, "") and said in err
    assert not (tmp_path / "run").exists()


def test_an_end_that_is_asked_for_leaves_nothing(
    dreamkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("dreamkit.cache.write.fill", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert dreamkit("cache", "recipe.yaml", "--out", "kept")[0] == 128 + signal.SIGTERM
    assert (sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--out", "captions.jsonl"],
            "captions.jsonl is a file, and is not a cache; name another folder by --out",
        ),
        (["--out", "."], "is not empty, and is not a cache"),
        ([], "nothing says where to write the cache; add --out FOLDER, or set train.cache"),
        (
            ["--out", "new", "--only", "feature"],
            "there is no table 'feature' to make; did you mean 'features'?",
        ),
        (["--out", "new", "--only", "features"], "features: the data has no image to read"),
        (["--out", "new", "data.0.path=nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_what_cannot_be_cached_is_said_and_leaves_nothing(
    dreamkit, tmp_path: Path, arguments: list[str], said: str
) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = dreamkit("cache", "recipe.yaml", *arguments)
    assert (code, out) == (2, "") and said in err.splitlines()[-1]
    assert "caching" not in err or "to read" in said
    assert sorted(tmp_path.iterdir()) == before


def test_one_of_several_processes_is_refused(
    dreamkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = dreamkit("cache", "recipe.yaml", "--out", "new")
    assert (
        code == 2
        and "caching runs in one process, but WORLD_SIZE is 2; start `dreamkit cache` without" in err
    )


def test_other_data_and_a_damaged_file_are_told_before_training(dreamkit, tmp_path: Path) -> None:
    assert (
        dreamkit("cache", "recipe.yaml", "--out", "kept", "--only", "latents", "--only", "features")[0] == 0
    )
    captions = tmp_path / "captions.jsonl"
    captions.write_text(captions.read_text() + "\n" + captions.read_text().splitlines()[0])
    may_lack = f"{tmp_path / 'kept'} may lack pictures: data.0 (pairs)"
    grown = f"{may_lack} had 3 documents when it was made, and has 4 now"
    for command in (["check"], ["plan"], ["train", "--out", "run"]):
        code, out, err = dreamkit(*command, "recipe.yaml", "train.cache=kept")
        assert code == 0 and grown in (out + err).splitlines()
    (tmp_path / "other.jsonl").write_text(captions.read_text())
    code, out, _ = dreamkit("check", "recipe.yaml", "train.cache=kept", "data.0.path=other.jsonl")
    was, now = (str(tmp_path / name) for name in ("captions.jsonl", "other.jsonl"))
    assert (
        code == 0
        and f"{may_lack} is other than when it was made: path was {was!r}, and is {now!r} now" in out
    )
    assert dreamkit("check", "recipe.yaml", "train.cache=kept", "data.0.path=missing.jsonl")[0] == 0
    shard = tmp_path / "kept" / "latents-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, _, err = dreamkit("check", "recipe.yaml", "train.cache=kept")
    assert code == 2 and "latents-00000.safetensors: " in err and "kept --overwrite" in err
