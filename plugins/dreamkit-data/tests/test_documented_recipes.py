"""The recipe lines and scripts of the documentation fit the data sets."""

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamkit import Image, Registry, Text
from dreamkit.recipe.loading import draft_recipe
from dreamkit_data.obelics import Obelics, ObelicsConfig
from dreamkit_data.tars import Tars, TarsConfig
from dreamkit_digits import digits
from table_files import name, png, write_parquet, write_png

ROOT = Path(__file__).parents[3]
PAGE, RUN_PAGE = ((ROOT / "docs" / name).read_text() for name in ("data.md", "data-run.md"))
README = (ROOT / "plugins" / "dreamkit-data" / "README.md").read_text()
BLOCKS = [
    block
    for page in (PAGE, RUN_PAGE, README)
    for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    if block.startswith("data:")
]


def own_data_sets() -> set[str]:
    components = Registry.load().components("dataset")
    return {name for name, each in components.items() if each.component.target.startswith("dreamkit_data.")}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_recipe_lines_of_the_pages_are_read(tmp_path: Path, block: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"extends: digits/stage1\n{block}")
    recipe, problems = draft_recipe(str(tmp_path / "recipe.yaml"), (), Registry.load())
    assert not problems
    assert len(recipe.data) == block.count("name:")


def test_the_pages_show_every_data_set_of_this_package() -> None:
    names = {name for block in BLOCKS for name in re.findall(r"name: (\w+)", block)}
    assert names >= own_data_sets() >= {"tars", "mmc4", "table", "obelics", "coco", "huggingface"}


def test_the_page_lists_the_index_of_every_data_set_of_this_package() -> None:
    (table,) = re.findall(r"^\| data \| index \|\n(.*?)\n\n", RUN_PAGE, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", table)) >= own_data_sets()


def run_script(word: str) -> None:
    """Execute the script of the page that has a word."""
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if word in code]
    exec(compile(script, "data.md", "exec"), {})


def test_the_script_of_the_page_makes_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pa.table({"a": range(250)})
    pq.write_table(table, "big.parquet")
    run_script("small.parquet")
    assert pq.read_table("small.parquet").equals(table)
    metadata = pq.read_metadata("small.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [100, 100, 50]


def test_the_script_of_the_page_writes_pairs_as_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_png(tmp_path, f"birds/{number}.jpg", number)
        (tmp_path / "birds" / f"{number}.txt").write_text(f"a {name(number)}")
    run_script("arcname")
    data = Tars(TarsConfig(tmp_path / "00000.tar"))
    assert [document.text for document in data] == ["a zero", "a one", "a two"]
    assert [document.images[0].picture.tobytes() for document in data] == [
        digits.load("train").image(number).tobytes() for number in range(3)
    ]


def test_the_script_of_the_page_stores_the_images_of_obelics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    addresses = [f"https://a.org/{index}.png" for index in range(3)]
    images = [[addresses[0], None, addresses[2], None]] * 150
    texts = [[None, "One.", None, "Two."]] * 150
    release = {"images": images, "texts": texts, "metadata": ["[]"] * 150, "general_metadata": ["{}"] * 150}
    write_parquet(tmp_path / "release.parquet", release)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / hashlib.sha256(addresses[0].encode()).hexdigest()).write_bytes(png(0))
    run_script("obelics.parquet")
    data = Obelics(ObelicsConfig(tmp_path / "obelics.parquet"))
    assert len(data) == 150
    assert [type(segment) for segment in data[149]] == [Image, Text]
    assert data[149].text == "One.\n\nTwo."
