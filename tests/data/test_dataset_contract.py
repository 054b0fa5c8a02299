"""The core's data sets fulfil their contract."""

from __future__ import annotations

import json
from pathlib import Path

from dreamkit.data.conversations import Conversations
from dreamkit.data.examples import COLOURS, write_images
from dreamkit.data.interleaved import Interleaved
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.testing import contracts


def write_folder(folder: Path) -> PairsConfig:
    """Write images, each beside its caption."""
    for image, colour in zip(write_images(folder), COLOURS, strict=True):
        (folder / image).with_suffix(".txt").write_text(f"a {colour} square\n")
    return PairsConfig(folder, direction="read")


def write_array(folder: Path) -> PairsConfig:
    """Write one array of records, whose images are in a folder of their own."""
    images = [image.removeprefix("images/") for image in write_images(folder)]
    records = [{"file": image, "text": f"{number}"} for number, image in enumerate(images)]
    (folder / "pairs.json").write_text(json.dumps(records, indent=1))
    return PairsConfig(folder / "pairs.json", images=folder / "images", image="file", caption="text")


@contracts.parametrize("dataset", contracts.tiny_dataset(Pairs))
def test_pairs_of_json_lines(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Pairs, write_folder))
def test_pairs_of_a_folder(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Pairs, write_array))
def test_pairs_of_an_array(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Interleaved))
def test_interleaved(check):
    check()


@contracts.parametrize("dataset", contracts.tiny_dataset(Conversations))
def test_conversations(check):
    check()
