"""The handwriting, its judge, the words, and the pretrained parts."""

import itertools
import json
import random
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from dreamkit_digits import digits, phrases
from dreamkit_digits.judge import Judge
from dreamkit_digits.phrases import HELD_OUT_PAIRS, PAIRS, TRAIN_PAIRS, WORDS
from dreamkit_digits.pretrain import STAGES
from dreamkit_digits.pretraining import sentences

PARTS = Path(str(resources.files("dreamkit_digits"))) / "parts"
LARGEST = 8_000_000
FIRST_HELD_OUT = [1, 4, 8, 6, 5, 9, 9, 1, 3, 2, 2, 2]


def test_the_split_is_complete_fixed_and_stratified() -> None:
    train, heldout = digits.load("train"), digits.load("heldout")
    assert (len(train), len(heldout)) == (1400, 397)
    for digit in range(10):
        assert abs(len(train.of(digit)) / 1400 - len(heldout.of(digit)) / 397) < 0.01
    # The figures hold only for parts that were trained on this split.
    assert heldout.labels[:12].tolist() == FIRST_HELD_OUT
    assert train.pixels.shape[1:] == (16, 16, 3)
    with pytest.raises(ValueError, match="read-only"):
        train.pixels[0] = 0


def test_the_judge_reads_real_digits() -> None:
    heldout = digits.load("heldout")
    judge = Judge.train()
    assert judge.accuracy(heldout.pixels, heldout.labels) >= 0.98
    assert judge.accuracy(heldout.images, heldout.labels) == judge.accuracy(heldout.pixels, heldout.labels)
    assert judge.accuracy(heldout.pixels, np.roll(heldout.labels, 1)) < 0.3
    assert judge.judge([]).tolist() == []


def test_a_held_out_pair_has_digits_and_a_sum_known_from_other_pairs() -> None:
    """Its mirror is trained too."""
    assert set(TRAIN_PAIRS) | HELD_OUT_PAIRS == set(PAIRS)
    assert not set(TRAIN_PAIRS) & HELD_OUT_PAIRS
    assert {(b, a) for a, b in HELD_OUT_PAIRS} <= set(TRAIN_PAIRS)
    for a, b in HELD_OUT_PAIRS:
        assert any(first == a for first, _ in TRAIN_PAIRS) and any(second == b for _, second in TRAIN_PAIRS)
        assert any(sum(pair) == a + b for pair in TRAIN_PAIRS)


def test_no_pretraining_text_adds_a_held_out_pair() -> None:
    rng = random.Random(1)
    # A picture's word is stuttered: "two two plus three three is five".
    texts = [
        " ".join(word for word, _ in itertools.groupby(sentences.sentence(rng).split()))
        for _ in range(20_000)
    ]

    def added(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        forms = ("{} plus {}", "sum of {} and {}", "{}, and {} more")
        return {
            (a, b)
            for a, b in pairs
            if any(form.format(WORDS[a], WORDS[b]) in text for form in forms for text in texts)
        }

    assert added(TRAIN_PAIRS) == set(TRAIN_PAIRS)
    assert added(HELD_OUT_PAIRS) == set()


@pytest.mark.parametrize(
    ("text", "digit"),
    [("is a seven", 7), ("an eight.", 8), ("not one but two!", 2), ("a dog", None), ("", None), ("Zero", 0)],
)
def test_the_last_digit_that_a_text_names_is_found(text: str, digit: int | None) -> None:
    assert phrases.digit_in(text) == digit


def test_names_have_their_article() -> None:
    assert [phrases.naming(digit) for digit in (1, 7, 8)] == ["a one", "a seven", "an eight"]


def test_lines_beyond_nine_are_refused() -> None:
    with pytest.raises(ValueError, match="5 plus 5 is 10"):
        phrases.summing(5, 5)
    with pytest.raises(ValueError, match="start is 8"):
        phrases.counting(8)


def test_the_parts_are_small_and_have_their_recorded_size() -> None:
    quality = json.loads((PARTS / "quality.json").read_text())
    for folder in ("stable-diffusion", "siglip", "llama"):
        size = sum(file.stat().st_size for file in (PARTS / folder).rglob("*") if file.is_file())
        assert size == quality["size"][folder]
    assert quality["size"]["total"] <= LARGEST
    assert quality["stable-diffusion"]["drawing_judge_accuracy"] >= 0.95


def test_pretraining_writes_the_files_and_configs_that_are_shipped(tmp_path: Path) -> None:
    """One step of each part is enough for that."""
    for _, place, module in STAGES:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        module.train(tmp_path / place, 1)
    built, shipped = files(tmp_path), files(PARTS) - {Path("quality.json")}
    assert built == shipped
    for config in (file for file in built if file.name == "config.json"):
        built_config, shipped_config = (json.loads((root / config).read_text()) for root in (tmp_path, PARTS))
        differing = {
            key
            for key in built_config | shipped_config
            if built_config.get(key) != shipped_config.get(key) and not key.startswith("_")
        }
        # the scale of the latents depends on the weights, versions on what is installed
        assert differing <= {"scaling_factor", "transformers_version"}


def files(folder: Path) -> set[Path]:
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
