"""A spec is inferred with timm alone."""

from __future__ import annotations

from pathlib import Path

from imports import Part, heavy_imports


def test_a_spec_imports_no_other_librarys_networks(tmp_path: Path) -> None:
    parts: list[Part] = [
        ("vision_encoder", "timm", {"pretrained": "timm/vit_tiny_patch16_224.augreg_in21k"}),
        ("vision_encoder", "timm", {"config": {"architecture": "convnext_femto"}}),
    ]
    assert heavy_imports(parts, tmp_path, also=("transformers", "diffusers")) == {}
