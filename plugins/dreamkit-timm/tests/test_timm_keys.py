"""Each key of a folder's pretrained_cfg counts as in timm's own model and transform, or is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import PretrainedCfg

from dreamkit import ConfigError
from dreamkit_timm.encoder import Timm
from dreamkit_timm.models import TimmConfig

SIDE = 16
MODELS = {"vit": Timm.tiny_config().config, "convnet": Timm.tiny_convnet_config().config}
VALUES: dict[str, list[Any]] = {
    "input_size": [[3, 24, 24]],
    "test_input_size": [[3, 32, 32]],
    "min_input_size": [[3, 32, 32]],
    "fixed_input_size": [False],
    "interpolation": ["bilinear", "bicubic", "nearest", "lanczos", None],
    "crop_pct": [0.5, 1.0, None],
    "test_crop_pct": [0.6],
    "crop_mode": ["squash", "border", "center", None],
    "mean": [[0.1, 0.2, 0.3], [0.5], None],
    "std": [[0.1, 0.2, 0.3], [0.5], None],
    "num_classes": [7],
    "pool_size": [[1, 1]],
    "test_pool_size": [[2, 2]],
    "first_conv": ["nothing", None],
    "custom_load": [True, "hf"],
    "url": ["https://localhost/x"],
    "file": ["/nowhere"],
    "hf_hub_id": ["someone/model"],
    "hf_hub_filename": ["other.bin"],
    "source": ["url"],
    "architecture": ["resnet18"],
    "tag": ["other"],
}
# of weights in memory, of the head and its classes, and notes
UNUSED = {
    *("state_dict", "classifier", "label_offset", "label_names", "label_descriptions"),
    *("license", "description", "origin_url", "paper_name", "paper_ids", "notes"),
}
WRONG = {
    "interpolation": ["random", "bicubik", 3],
    "crop_pct": ["big"],
    "mean": [[0.1, 0.2], [math.nan] * 3, [0.5, math.inf, 0.5]],
    "std": [[0, 0, 0], [0.5, 0, 0.5], [math.nan] * 3, [1e-45] * 3],
}
Write = Callable[[dict[str, Any]], tuple[str, Any]]


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, source: Write, tmp_path: Path) -> str:
    """Return a folder of a model for images of `SIDE` pixels."""
    name, _ = source(MODELS[request.param])
    edit(name, input_size=[3, SIDE, SIDE])
    return name


def edit(folder: str, **values: Any) -> None:
    file = Path(folder) / "config.json"
    content = json.loads(file.read_text())
    content["pretrained_cfg"].update(values)
    file.write_text(json.dumps(content))


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    sizes = [(40, 30), (17, 50), (33, 33), (10, 12)]
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("key", VALUES)
@torch.no_grad()
def test_pixels_and_features_equal_timms(folder: str, key: str) -> None:
    before = json.loads((Path(folder) / "config.json").read_text())["pretrained_cfg"].get(key)
    for value in VALUES[key]:
        edit(folder, **{key: value})
        library = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        transform = create_transform(**resolve_data_config({}, model=library))
        expected = torch.stack([transform(picture) for picture in pictures()])
        config = TimmConfig(pretrained=folder)
        part = Timm.from_pretrained(config).eval()
        assert part.spec == Timm.infer_spec(config)
        pixels = part.preprocess(pictures())
        torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=1e-6)
        (features,) = library.forward_intermediates(
            expected, indices=[part.layer], output_fmt="NCHW", intermediates_only=True
        )
        torch.testing.assert_close(part(pixels), features.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
        edit(folder, **{key: before})


@pytest.mark.parametrize(
    ("values", "side"),
    [
        ({"crop_pct": 0.9}, 17),
        ({"crop_pct": 1.0}, 16),
        ({"crop_pct": 0.8, "crop_mode": "squash"}, 20),
        ({"crop_pct": 0.5, "crop_mode": "border"}, 32),
    ],
)
def test_an_image_as_large_as_the_resized_side_is_not_resized(
    folder: str, values: dict[str, Any], side: int
) -> None:
    edit(folder, **values)
    part = Timm.from_pretrained(TimmConfig(pretrained=folder))
    assert part.spec.resized_side == side
    noise = np.random.default_rng(0).integers(0, 2, (side, side, 3), dtype=np.uint8) * 255
    pixels = part.preprocess([Image.fromarray(noise)])[0]
    assert [len(channel.unique()) for channel in pixels] == [2, 2, 2]


@pytest.mark.parametrize("key", WRONG)
def test_a_value_with_which_timm_cannot_process_images_is_refused_by_name(folder: str, key: str) -> None:
    for value in WRONG[key]:
        edit(folder, **{key: value})
        with pytest.raises(ConfigError, match=f"timm cannot process images with its pretrained_cfg {key} "):
            Timm.infer_spec(TimmConfig(pretrained=folder))


def test_every_key_of_the_installed_class_is_listed() -> None:
    assert {field.name for field in fields(PretrainedCfg)} == VALUES.keys() | UNUSED
    processing = {"input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode"}
    assert resolve_data_config({}, pretrained_cfg={"input_size": (3, 8, 8)}).keys() == processing
