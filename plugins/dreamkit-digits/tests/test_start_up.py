"""A recipe of the shipped parts and data set is checked without networks and scikit-learn."""

from __future__ import annotations

from pathlib import Path

from imports import Part, heavy_imports

PARTS: list[Part] = [
    ("dataset", "digits", None),
    ("language_model", "vicuna", {"pretrained": "pkg:dreamkit_digits/parts/llama"}),
    ("vision_encoder", "siglip", {"pretrained": "pkg:dreamkit_digits/parts/siglip"}),
    ("image_decoder", "stable-diffusion", {"pretrained": "pkg:dreamkit_digits/parts/stable-diffusion"}),
]


def test_a_recipe_is_checked_without_what_trains_it(tmp_path: Path) -> None:
    assert heavy_imports(PARTS, tmp_path, also=("sklearn", "scipy")) == {}
