"""Images are processed as by the library's own processor, whatever its file has, or the file is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Dinov2Config,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from dreamkit import SourceError
from dreamkit_transformers import processor_keys as keys
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from dreamkit_transformers.vision import VisionConfig

SIDE, PATCH = 16, 8
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": PATCH}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "clip": (
        Clip,
        CLIPVisionConfig(**SIZES, intermediate_size=24, image_size=SIDE),
        CLIPImageProcessor(**CROPPED),
    ),
    "siglip": (
        Siglip,
        SiglipVisionConfig(**SIZES, intermediate_size=24, image_size=SIDE),
        SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
    ),
    "dinov2": (Dinov2, Dinov2Config(**SIZES, image_size=SIDE), BitImageProcessor(**CROPPED)),
    "naflex": (
        Siglip2,
        Siglip2VisionConfig(**SIZES, intermediate_size=24, num_patches=4),
        Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=4),
    ),
}
VALUES: dict[str, list[Any]] = {  # of each key; None is null in the file
    "do_convert_rgb": [False, None],
    "do_resize": [False, None],
    "size": [
        *(
            {"shortest_edge": SIDE},
            {"shortest_edge": 20},
            {"height": 20, "width": 24},
            SIDE,
            20,
            "wide",
            None,
        ),
        *({"shortest_edge": SIDE, "longest_edge": SIDE}, {"max_height": SIDE, "max_width": SIDE}),
    ],
    "default_to_square": [True, False],
    "crop_size": [SIDE, 8, {"height": SIDE, "width": 24}, None],
    "resample": [0, 1, 2, 3, 4, None],
    "do_rescale": [False],
    "rescale_factor": [1 / 127.5, None],
    "do_normalize": [False],
    "image_mean": [[0.1, 0.2, 0.3], 0.4, None],
    "image_std": [[0.1, 0.2, 0.3], 0.4, None],
    "do_pad": [True],
    "pad_size": [{"height": SIDE, "width": SIDE}, {"height": 24, "width": 24}],
    "do_center_crop": [True, False, None],
    "data_format": ["channels_last"],
    "input_data_format": ["channels_first"],
    "device": ["meta"],
    "return_tensors": ["np"],
    "disable_grouping": [True],
    "image_seq_length": [7],
    "patch_size": [4],
    "max_num_patches": [6, 9, 16],
    "image_processor_type": [
        *("ViTImageProcessor", "CLIPImageProcessor", "CLIPImageProcessorPil", "ConvNextImageProcessor"),
        *(
            "SiglipImageProcessor",
            "Siglip2ImageProcessor",
            "BitImageProcessorFast",
            "EfficientNetImageProcessor",
        ),
        *("CLIPFeatureExtractor", "NoSuchProcessor"),
    ],
    "feature_extractor_type": ["CLIPFeatureExtractor", "ConvNextFeatureExtractor"],
    "crop_pct": [0.5],  # of ConvNext's processor
}
# a key for which the library processes what dreamkit refuses: it must not depend on a default of the library's code
STRICTER = [("resample", None)]


# values with which the library makes pixels that are not finite
NOT_FINITE: list[dict[str, Any]] = [
    {"image_std": [0, 0, 0]},
    {"image_std": [0.5, 0.5, 0.0]},
    {"image_std": 0},
    {"image_std": [1e-45] * 3, "image_mean": [0, 0, 0]},
    {"image_std": [math.nan] * 3},
    {"image_mean": [math.nan] * 3},
    {"image_mean": [0.5, -math.inf, 0.5]},
    {"rescale_factor": math.nan},
    {"rescale_factor": math.inf},
    {"rescale_factor": 1e38},
]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(folder: Path, family: str, **changes: Any) -> VisionConfig:
    """Write a model and its processor with these keys changed."""
    cls, config, processor = FAMILIES[family]
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        architecture = cls._architecture(VisionConfig(config=cls.architectures[0].tiny), None)[0]
        architecture.model_class(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    values = {**json.loads(file.read_text()), **changes}
    if "feature_extractor_type" in changes or "crop_pct" in changes:
        del values["image_processor_type"]
    if "crop_pct" in changes:
        values["image_processor_type"] = "ConvNextImageProcessor"
    if "pad_size" in changes:
        values["do_pad"] = True
    file.write_text(json.dumps(values))
    return VisionConfig(pretrained=str(folder))


def pictures(family: str) -> list[Image.Image]:
    sizes = [(33, 33), (60, 60)] if family == "naflex" else [(40, 30), (17, 50), (33, 33)]
    noise = np.random.default_rng(0)
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def library_pixels(folder: Path, family: str) -> torch.Tensor | str:
    """Return the library's pixels (N, 3, H, W), or its error."""
    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        processor.device = None
        inputs = processor(pictures(family), return_tensors="pt")
        if "spatial_shapes" in inputs:
            side = int(inputs["spatial_shapes"][0, 0])
            patches = inputs["pixel_values"][:, : side**2]
            grid = {"h": side, "p": processor.patch_size, "q": processor.patch_size}
            return rearrange(patches, "n (h w) (p q c) -> n c (h p) (w q)", **grid)
        return inputs["pixel_values"]
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("key", VALUES)
def test_pixels_equal_the_librarys_or_the_file_is_refused(family: str, key: str, tmp_path: Path) -> None:
    cls, _, _ = FAMILIES[family]
    for value in VALUES[key]:
        config = write(tmp_path, family, **{key: value})
        expected = library_pixels(tmp_path, family)
        try:
            spec = cls.infer_spec(config)
        except SourceError as error:
            with pytest.raises(SourceError) as caught:
                cls.from_pretrained(config)
            assert str(caught.value) == str(error) and "preprocessor_config.json: " in str(error)
            if isinstance(expected, str) or (key, value) in STRICTER:
                continue
            assert expected.shape[1:] != (3, SIDE, SIDE), f"{key} {value}: {error}"
        else:
            part = cls.from_pretrained(config)
            pixels = part.preprocess(pictures(family))
            assert part.spec == spec and pixels.shape[-2:] == (spec.image_size, spec.image_size)
            assert not isinstance(expected, str), f"{key} {value}: {expected}"
            torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("values", NOT_FINITE, ids=str)
def test_a_file_that_makes_inf_or_nan_is_refused(family: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = write(tmp_path, family, **values)
    for build in (FAMILIES[family][0].infer_spec, FAMILIES[family][0].from_pretrained):
        with pytest.raises(SourceError, match=r"preprocessor_config\.json: invalid for "):
            build(config)


def test_every_key_of_the_installed_processors_is_listed_and_tested(family: str) -> None:
    _, _, processor = FAMILIES[family]
    installed = set(type(processor).valid_kwargs.__annotations__)
    listed = keys.SIZE_KEYS | keys.VALUE_KEYS | keys.CLASS_KEYS | {keys.RESAMPLE}
    assert installed == (listed | keys.PATCH_KEYS if family == "naflex" else listed)
    assert installed <= VALUES.keys()


def test_the_usual_files_are_read_without_the_processors_class(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, family)
    cls = FAMILIES[family][0]
    expected = cls.from_pretrained(config).spec
    monkeypatch.delattr(transformers.AutoImageProcessor, "from_pretrained")
    assert cls.infer_spec(config) == expected
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    name = values.pop("image_processor_type").replace("ImageProcessor", "FeatureExtractor")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | {"feature_extractor_type": name}))
    assert cls.infer_spec(config) == expected


def test_a_processors_key_of_a_new_release_is_left_to_its_class(family: str, tmp_path: Path) -> None:
    config = write(tmp_path, family, zoom=2)
    assert not keys.is_plain({"zoom": 2}, "CLIPImageProcessor", keys.SIZE_KEYS)
    assert FAMILIES[family][0].infer_spec(config).image_size == SIDE


@pytest.mark.parametrize("side", [24, 32])
def test_every_size_of_a_file_is_scaled_to_the_image_size(side: int, tmp_path: Path) -> None:
    config = VisionConfig(
        pretrained=write(tmp_path, "siglip", pad_size={"height": SIDE, "width": SIDE}).pretrained,
        image_size=side,
    )
    assert Siglip.infer_spec(config) == Siglip.from_pretrained(config).spec
    assert Siglip.from_pretrained(config).preprocess(pictures("siglip")).shape[-2:] == (side, side)
