"""The command `dreamkit data index`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dreamkit import DocumentError, DreamkitError, Registry
from dreamkit.cli.app import app
from dreamkit_data import tar_samples
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits.documents import Digits
from tar_files import digit_metadata, write_img2dataset, write_mmc4

SHARDS = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(4)]


def index(*arguments: object) -> list[str]:
    result = CliRunner().invoke(app, ["data", "index", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout.splitlines()


def test_a_pattern_is_indexed_as_a_training_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SHARDS[1][3] |= {"caption": " "}
    write_img2dataset(tmp_path, SHARDS)
    estimate, note, result = index(tmp_path / "{00000..00003}.tar")
    assert estimate.startswith("4 files, ") and "about 40 samples, as the first file shows" in estimate
    assert "left out: 1 sample without a caption, such as 00001.tar!000000013" in note
    assert result == "tars: 39 documents"
    monkeypatch.setattr(tar_samples, "samples", None)
    assert len(Tars(TarsConfig(tmp_path))) == 39


def test_an_interrupted_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_img2dataset(tmp_path, SHARDS)
    content = paths[3].read_bytes()
    paths[3].write_bytes(content[:2000])
    with pytest.raises(DocumentError, match=r"00003\.tar: the archive is cut"):
        index(tmp_path)
    paths[3].write_bytes(content)
    read = []
    original = tar_samples.samples
    monkeypatch.setattr(
        tar_samples, "samples", lambda *args, **kwargs: read.append(args[3]) or original(*args, **kwargs)
    )
    assert index(tmp_path)[-1].startswith("tars: ")
    assert read == [str(paths[3])]


def test_a_recipe_is_indexed_with_its_settings_and_mmc4_by_its_format(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pages").mkdir()
    write_img2dataset(tmp_path / "pairs", SHARDS)
    counting = Digits(Digits.Config(documents={"counting": 1.0}))
    write_mmc4(tmp_path / "pages", [[counting[number] for number in range(5)]])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extends: digits/stage2\n"
        "data:\n"
        "  - {name: tars, path: pairs, caption: 'json:caption', index: index}\n"
        "  - {name: mmc4, path: pages, index: index}\n"
    )
    assert index(recipe)[-1] == "mmc4: 5 documents"
    assert len(list((tmp_path / "index").glob("*.npy"))) == 5
    lines = index(tmp_path / "pages" / "*.tar", "--format", "mmc4", "--index", tmp_path / "other")
    assert lines == ["mmc4: 5 documents"]
    assert len(list((tmp_path / "other").glob("*.npy"))) == 1
    assert index("digits/stage1") == ["digits: 100,000 documents"]


@pytest.mark.parametrize("options", [["--index", "folder"], ["--format", "mmc4"], ["--format", "tars"]])
def test_options_of_a_pattern_are_refused_for_recipes_alone(options: list[str]) -> None:
    with pytest.raises(DreamkitError, match=f"{options[0]}: expected a pattern of files, got recipes alone"):
        index("digits/stage1", *options)


def test_a_mistyped_recipe_gets_the_nearest_name(tmp_path: Path) -> None:
    for target in ("digits/stag1", "digits/stge1"):
        with pytest.raises(
            DocumentError, match=f"{target}: no such file or recipe; did you mean 'digits/stage1'"
        ):
            index(target)
    for target in (tmp_path / "digits", "digits/*", "00000.tar"):
        with pytest.raises(DocumentError, match=r"no such file( or folder)?; correct the path"):
            index(target)


def test_listing_the_commands_and_data_sets_loads_no_library() -> None:
    components = Registry.load().components("command")
    assert components["data index"].component.target == "dreamkit_data.index_command:index"
