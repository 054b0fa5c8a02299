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
        "features (pictures: 1), 416 bytes",
        "latents (pictures: 3), 6.4 kB",
        "wrote kept; train with train.cache=kept",
    ]  # two of the three are one, and the dummy's; none is read
    assert "caching" in err and "3/3" in err
    assert dreamkit("check", "recipe.yaml", "train.cache=kept")[0] == 0
    code, out, _ = dreamkit("plan", "recipe.yaml", "train.cache=kept")
    assert code == 0 and f"what {tmp_path / 'kept'} holds of images is read, and not computed" in out
    code, out, err = dreamkit("inspect", "kept")
    assert code == 0 and "every file is as it was written" in out
    assert re.search(r"features +1 +features float32 \[4, 16\] +416 bytes +vision_encoder clip +float32", out)
    code, out, err = dreamkit("train", "recipe.yaml", "train.cache=kept", "--out", "run")
    assert code == 0 and "latents (pictures: 3, image_decoder does not encode)" in err

    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text() + "init: run/checkpoint\n")
    code, out, err = dreamkit("cache", "recipe.yaml", "train.cache=kept", "train.trainable=[vision_encoder]")
    assert (
        code == 0
        and out.splitlines()[-1] == f"wrote {tmp_path / 'kept'}; train with train.cache={tmp_path / 'kept'}"
    )
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
    monkeypatch.setattr("dreamkit.caching._fill", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
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
            "'feature' found, but one of these is to be cached: features, latents",
        ),
        (["--out", "new", "data.0.path=nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_what_cannot_be_cached_is_said_and_leaves_nothing(
    dreamkit, tmp_path: Path, arguments: list[str], said: str
) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = dreamkit("cache", "recipe.yaml", *arguments)
    assert (code, out) == (2, "") and said in err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
