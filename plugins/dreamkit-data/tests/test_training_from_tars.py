"""Training from tars: the same documents give the same losses as from the source that they were written from."""

from pathlib import Path

import pytest

from dreamkit import load_recipe
from dreamkit_digits import documents
from dreamkit_digits.documents import Digits
from runs import training_losses
from tar_files import write_mmc4

STAGE2 = {"reading": 1.0, "drawing": 1.0, "counting": 2.0, "sums": 4.0}
SETTINGS = ("train.steps=3", "train.log_every=1", "train.global_batch=4", "train.warmup=0")


def test_stage_2_of_the_digits_trains_from_mmc4_tars_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENTS", 60)
    source = Digits(Digits.Config(documents=STAGE2))
    assert load_recipe("digits/stage2").data[0].config.documents == STAGE2
    shards = tmp_path / "shards"
    shards.mkdir()
    write_mmc4(shards, [[source[n] for n in range(start, start + 20)] for start in (0, 20, 40)])
    recipe = tmp_path / "stage2.yaml"
    recipe.write_text(
        "extends: digits/stage2\ndata:\n  - {name: mmc4, path: 'shards/{00000..00002}.tar', draw: true}\n"
    )
    from_source = training_losses("digits/stage2", tmp_path / "source", SETTINGS)
    assert len(from_source) == 3
    assert training_losses(str(recipe), tmp_path / "tars", SETTINGS) == from_source
