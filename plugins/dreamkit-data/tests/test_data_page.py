"""The recipes on the pages about tars and MMC4."""

import re
from pathlib import Path

import pytest

from dreamkit import Registry
from dreamkit.recipe.loading import draft_recipe

ROOT = Path(__file__).parents[3]
PAGES = ["docs/data.md", "plugins/dreamkit-data/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_recipes_of_the_pages_have_valid_settings(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(data:\n.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    names = set()
    for number, block in enumerate(blocks):
        recipe = tmp_path / f"{number}.yaml"
        recipe.write_text(f"extends: digits/stage1\n{block}")
        draft, problems = draft_recipe(str(recipe), (), Registry.load())
        assert not problems
        names |= {section.name for section in draft.data}
    assert names >= {"tars", "mmc4"}
