"""`dreamkit cache`, and the messages of other commands about a cache."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import layouts
import tiny

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dreamkit(run: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Return `run` in a folder with a recipe and data."""
    train = {"trainable": layouts.TRAINABLE, "steps": 2, "batch_size": 2, "log_every": 1}
    data = [{"name": "pairs", "path": "captions.jsonl"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny.recipe(train=train, data=data)))
    for number in range(3):
        tiny.picture(number % 2).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", "caption": "a picture"}) for number in range(3)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_skipped_documents_are_listed_in_a_file_of_the_cache(dreamkit: Command) -> None:
    names = ["0.png", *(f"gone-{number}.png" for number in range(20)), "1.png"]
    lines = [json.dumps({"image": name, "caption": "a picture"}) for name in names]
    Path("captions.jsonl").write_text("\n".join(lines))
    code, out, err = dreamkit("cache", "recipe.yaml", "--out", "cache1", "train.workers=2")
    assert code == 0 and "latents (images: 2)" in out
    file = Path.cwd() / "captions.jsonl"
    common = f"20 of 20 in data.0; 20 of 20 in {file}; 20 of 20: no such image: ..."
    assert f"skipped 20 documents, as training does, listed in cache1/skipped.jsonl; {common}\n" in err
    entries = [json.loads(line) for line in Path("cache1/skipped.jsonl").read_text().splitlines()]
    assert entries == [
        {
            "data": 0,
            "index": number + 1,
            "shard": str(file),
            "member": str(number + 2),
            "reason": f"no such image: {Path.cwd()}/gone-{number}.png",
        }
        for number in range(20)
    ]
    assert "skipped.jsonl" in json.loads(Path("cache1/cache.json").read_text())["files"]
    assert dreamkit("train", "recipe.yaml", "train.cache=cache1", "--out", "out")[0] == 0


def test_the_command_reports_size_progress_and_tables(dreamkit: Command) -> None:
    code, out, err = dreamkit("cache", "recipe.yaml", "--out", "cache1")
    assert code == 0, err
    # two of the three images are equal; none is read
    assert out.splitlines() == ["latents (images: 2), 6.4 kB", "wrote cache1; train with train.cache=cache1"]
    assert re.search(r"listing documents \S+ 3/3 .*\n?.*computing rows \S+ 2/2 ", err)
    assert "no features: the data has no image to read" in err
    row_bytes = 2 * 4 * 8 * 8 * 4 + 16  # mean and standard deviation in float32, and a key
    assert (
        row_bytes == 2064 and "features take 272 bytes, latents take 2.1 kB per image; 3 documents: " in err
    )
    assert re.search(r"at most 7\.0 kB with one image per table in each document; [\d.]+ .?B free\n", err)


def test_a_cache_is_checked_planned_inspected_and_trained_from(dreamkit: Command, tmp_path: Path) -> None:
    assert dreamkit("cache", "recipe.yaml", "--out", "cache1")[0] == 0
    summary = f"read from {tmp_path / 'cache1'}: latents (images: 2, image_decoder does not encode)"
    for command in ("check", "plan"):
        code, out, _ = dreamkit(command, "recipe.yaml", "train.cache=cache1")
        assert code == 0 and out.splitlines()[-1] == summary
    code, out, _ = dreamkit("inspect", "cache1")
    assert code == 0 and "every file is intact" in out
    row = r"mean float32 \[4, 8, 8\], std float32 \[4, 8, 8\]"
    part = r"image_decoder stable-diffusion \(dreamkit-diffusers [\d.]+\)"
    assert re.search(rf"latents +2 +{row} +6.4 kB +{part} +float32", " ".join(out.split()))
    code, _, err = dreamkit("train", "recipe.yaml", "train.cache=cache1", "--out", "run")
    assert code == 0 and summary in err and "may lack" not in err
    # the same frozen weights, from a checkpoint
    assert dreamkit("cache", "recipe.yaml", "init=run/checkpoint", "--out", "again")[0] == 0
    next_stage = ["recipe.yaml", "init=run/checkpoint", "train.cache=again", "--out", "next"]
    assert dreamkit("train", *next_stage)[0] == 0


def test_overwrite_replaces_all_tables_of_a_cache(dreamkit: Command, tmp_path: Path) -> None:
    assert dreamkit("cache", "recipe.yaml", "--out", "cache1")[0] == 0
    cache1 = tmp_path / "cache1"
    arguments = ["cache", "recipe.yaml", "train.cache=cache1", "train.trainable=[vision_encoder]"]
    before = contents(cache1)
    code, out, err = dreamkit(*arguments)
    assert (code, out) == (2, "") and err.endswith(
        "cache1 is not empty; pass a new folder with --out, or replace the cache with --overwrite\n"
    )
    assert "listing" not in err and contents(cache1) == before
    code, out, err = dreamkit(*arguments, "--overwrite")
    assert code == 0 and out.splitlines()[-1] == f"replaced {cache1}; train with train.cache={cache1}"
    assert "no features: vision_encoder is trained (train.trainable or model.adapters)" in err
    assert contents(cache1).keys() == {"cache.json", "latents-00000.safetensors"}


def test_a_missing_cache_is_reported_with_its_line_in_the_recipe(dreamkit: Command, tmp_path: Path) -> None:
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("train:\n", "train:\n  cache: nowhere\n"))
    line = 1 + (tmp_path / "recipe.yaml").read_text().splitlines().index("  cache: nowhere")
    message = (
        f"recipe.yaml:{line}: train.cache: {tmp_path / 'nowhere'} is not a cache: there is no such folder"
    )
    for arguments in (
        ["check", "recipe.yaml"],
        ["plan", "recipe.yaml"],
        ["train", "recipe.yaml", "--out", "run"],
    ):
        code, out, err = dreamkit(*arguments)
        assert (code, out) == (2, "") and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override",
    [
        "train.precision=bfloat15",
        "model.image_decoder.image_size=x",
        "model.image_decoder.name=stable-difusion",
    ],
)
def test_a_section_with_problems_of_its_own_is_not_compared(dreamkit: Command, override: str) -> None:
    assert dreamkit("cache", "recipe.yaml", "--out", "cache1")[0] == 0
    code, _, err = dreamkit("check", "recipe.yaml", "train.cache=cache1", override)
    assert code == 2 and override.split("=")[0] in err and "train.cache" not in err


def test_sigterm_before_the_first_block_leaves_no_folder(
    dreamkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("dreamkit.cache.caching.list_images", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert dreamkit("cache", "recipe.yaml", "--out", "cache1")[0] == 128 + signal.SIGTERM
    assert (sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)) == before


def test_a_command_that_sigterm_ended_is_continued(
    dreamkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dreamkit("cache", "recipe.yaml", "--out", "straight")[0] == 0
    arguments = ["cache", "recipe.yaml", "--out", "cache1"]
    with monkeypatch.context() as patch:
        patch.setattr("dreamkit.cache.caching.fill", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        code, out, err = dreamkit(*arguments)
    kept = tmp_path / ".cache1.unfinished"
    assert (code, out) == (128 + signal.SIGTERM, "") and err.endswith(
        f"dreamkit: interrupted by SIGTERM; the finished part is in {kept}; continue with --resume\n"
    )
    code, _, err = dreamkit(*arguments)
    assert code == 2 and err.endswith(
        "cache1; continue it with --resume, or throw it away with --overwrite\n"
    )
    code, out, err = dreamkit(*arguments, "--resume")
    assert code == 0 and "wrote cache1;" in out and "3/3" in err
    assert contents(tmp_path / "cache1") == contents(tmp_path / "straight") and not kept.exists()
    code, out, err = dreamkit(*arguments, "--resume")
    assert code == 0 and "found cache1;" in out and "nothing was computed: the cache is complete\n" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "captions.jsonl"],
            "captions.jsonl is a file, and is not a cache; pass another folder with --out",
        ),
        (["--out", "."], "is not empty, and is not a cache"),
        ([], "no output folder: pass --out FOLDER or set train.cache"),
        (["--out", "new", "--only", "feature"], "unknown table 'feature'; did you mean 'features'?"),
        (["--out", "new", "--only", "features"], "features: the data has no image to read"),
        (["--out", "new", "data.0.path=nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_a_user_error_is_one_message_and_leaves_no_folder(
    dreamkit: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = dreamkit("cache", "recipe.yaml", *arguments)
    assert (code, out) == (2, "") and message in err.splitlines()[-1]
    assert "listing" not in err or "to read" in message
    assert sorted(tmp_path.iterdir()) == before


def test_changed_data_is_reported_and_trained_on(dreamkit: Command, tmp_path: Path) -> None:
    assert dreamkit("cache", "recipe.yaml", "--out", "cache1")[0] == 0
    _, out, _ = dreamkit("check", "recipe.yaml", "train.cache=cache1", "data.0.index=index")
    assert "may lack" not in out  # the place of an index changes no data
    captions = tmp_path / "captions.jsonl"
    captions.write_text(captions.read_text() + "\n" + captions.read_text().splitlines()[0])
    start = f"{tmp_path / 'cache1'} may lack images: data.0 (pairs)"
    note = f"{start} had 3 documents when the cache was written, and has 4 now"
    for command in (["check"], ["plan"], ["train", "--out", "run"]):
        code, out, err = dreamkit(*command, "recipe.yaml", "train.cache=cache1")
        assert code == 0 and note in (out + err).splitlines()
    (tmp_path / "other.jsonl").write_text(captions.read_text())
    code, out, _ = dreamkit("check", "recipe.yaml", "train.cache=cache1", "data.0.path=other.jsonl")
    before, now = (str(tmp_path / name) for name in ("captions.jsonl", "other.jsonl"))
    assert code == 0 and f"{start} has other settings: path: {before!r} in the cache, {now!r} now" in out
    assert dreamkit("check", "recipe.yaml", "train.cache=cache1", "data.0.path=missing.jsonl")[0] == 0


def test_a_damaged_file_is_reported_before_training(dreamkit: Command, tmp_path: Path) -> None:
    assert (
        dreamkit("cache", "recipe.yaml", "--out", "cache1", "--only", "latents", "--only", "features")[0] == 0
    )
    shard = tmp_path / "cache1" / "latents-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, _, err = dreamkit("check", "recipe.yaml", "train.cache=cache1")
    assert code == 2 and "latents-00000.safetensors: " in err and "cache1 --overwrite" in err
