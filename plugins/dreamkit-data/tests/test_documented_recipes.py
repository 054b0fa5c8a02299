"""The recipe lines of the documentation fit the data sets."""

import re
from pathlib import Path

import pytest

from dreamkit import Registry
from dreamkit.recipe.loading import draft_recipe

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
BLOCKS = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("data:")]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_recipe_lines_of_the_page_are_read(tmp_path: Path, block: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"extends: digits/stage1\n{block}")
    recipe, problems = draft_recipe(str(tmp_path / "recipe.yaml"), (), Registry.load())
    assert not problems
    assert len(recipe.data) == block.count("name:")


def test_the_page_shows_every_data_set_of_this_package() -> None:
    names = {name for block in BLOCKS for name in re.findall(r"name: (\w+)", block)}
    assert names >= {"table", "obelics", "coco"}


def test_the_script_of_the_page_makes_small_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    table = pa.table({"a": range(250)})
    pq.write_table(table, "big.parquet")
    (script,) = [
        code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ParquetWriter" in code
    ]
    exec(compile(script, "data.md", "exec"), {})
    assert pq.read_table("small.parquet").equals(table)
    metadata = pq.read_metadata("small.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [100, 100, 50]
