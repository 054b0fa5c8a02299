"""The command `dreamkit data index`."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from rich.filesize import decimal
from typer.testing import CliRunner

from dreamkit import DocumentError, DreamkitError, Registry
from dreamkit.cli.app import app
from dreamkit_data import tar_samples
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from dreamkit_digits.documents import Digits
from tar_files import digit_metadata, write_img2dataset, write_mmc4

SHARDS = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(4)]


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["data", "index", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result


def index(*arguments: object) -> list[str]:
    return invoke(*arguments).stdout.splitlines()


def test_a_pattern_is_indexed_as_a_training_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SHARDS[1][3] |= {"caption": " "}
    write_img2dataset(tmp_path, SHARDS)
    note, result = index(tmp_path / "{00000..00003}.tar")
    assert "left out: 1 sample without a caption, such as 00001.tar!000000013" in note
    assert result == "tars: 39 documents; indexed 4 files"
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
    assert index(recipe)[-1] == "mmc4: 5 documents; indexed 1 file"
    assert len(list((tmp_path / "index").glob("*.npy"))) == 5
    lines = index(tmp_path / "pages" / "*.tar", "--format", "mmc4", "--index", tmp_path / "other")
    assert lines == ["mmc4: 5 documents; indexed 1 file"]
    assert len(list((tmp_path / "other").glob("*.npy"))) == 1
    assert index("digits/stage1") == ["digits: 100,000 documents; needs no index"]


def test_what_is_to_be_read_is_printed_for_each_data_set_of_a_recipe_until_it_is_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.data.index_store.usable_processes", lambda: 1)
    (tmp_path / "tars").mkdir()
    shards = [[digit_metadata(10 * shard + n) for n in range(10)] for shard in range(4)]
    tars = write_img2dataset(tmp_path / "tars", shards)
    for name in ("a", "b"):
        (tmp_path / f"{name}.tsv").write_text("image\tcaption\n" + "1.png\ta digit\n" * 50)
        rows = {"image": [b"bytes"] * 20, "caption": ["a digit"] * 20}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "pairs.jsonl").write_text('{"image": "1.png", "caption": "a digit"}\n' * 30)
    digits.load("train").image(1).save(tmp_path / "1.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "extends: digits/stage2\n"
        "data:\n"
        "  - {name: tars, path: tars, index: index}\n"
        "  - {name: table, path: '*.tsv', index: index}\n"
        "  - {name: table, path: '*.parquet', index: index}\n"
        "  - {name: pairs, path: pairs.jsonl, index: index}\n"
    )
    first = invoke(recipe)
    sizes = [
        sum(file.stat().st_size for file in files)
        for files in (tars, *(tmp_path.glob(f"*.{end}") for end in ("tsv", "parquet", "jsonl")))
    ]
    lines = first.stderr.splitlines()
    heads = ["4 files of tars", "2 files of table", "2 files of parquet", f"{tmp_path}/pairs.jsonl"]
    assert [line.partition(" in 1 process")[0] for line in lines if "the index is kept in" in line] == [
        f"indexing {head} ({decimal(size)})" for head, size in zip(heads, sizes, strict=True)
    ]
    estimates = [line.removeprefix("as the first file shows: ") for line in lines if line.startswith("as ")]
    costs = [facts["cost"] for facts in Tars(TarsConfig(tmp_path / "tars", index=tmp_path / "index")).facts]
    scale = sizes[0] / tars[0].stat().st_size
    reads, size = (costs[0][key] * scale for key in ("reads", "bytes"))
    expected = f"about {10 * scale:.0f} documents, {reads:.0f} reads of {decimal(round(size))} in all, "
    assert estimates[0].startswith(expected) and estimates[0].endswith(" s in 1 process")
    assert estimates[1].startswith(f"about 100 documents, {decimal(sizes[1])} to read, ")
    assert estimates[2].startswith("about 40 documents, 4 reads of ") and len(estimates) == 3
    ends = ["4 files", "2 files", "2 files", "1 file"]
    results = [line.partition("; ")[2] for line in first.stdout.splitlines() if "; " in line]
    assert results == [f"indexed {files}" for files in ends]
    second = invoke(recipe)
    assert second.stderr == ""
    results = [line.partition("; ")[2] for line in second.stdout.splitlines() if "; " in line]
    assert results == [f"{files} already indexed" for files in ends]
    tars[2].touch()
    assert "; indexed 1 of 4 files, the others were already" in invoke(recipe).stdout


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
