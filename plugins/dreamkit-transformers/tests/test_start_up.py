"""A spec needs none of the library's networks, which take seconds to import."""

from __future__ import annotations

from pathlib import Path

from imports import Part, heavy_imports

KNOWN = (
    ("vision_encoder", "clip", "openai/clip-vit-large-patch14"),
    ("vision_encoder", "siglip", "google/siglip-base-patch16-224"),
    ("vision_encoder", "siglip2", "google/siglip2-so400m-patch14-384"),
    ("vision_encoder", "siglip2", "google/siglip2-base-patch16-naflex"),
    ("vision_encoder", "dinov2", "facebook/dinov2-base"),
    ("vision_encoder", "dinov2", "facebook/dinov2-with-registers-base"),
    ("language_model", "llama", "meta-llama/Llama-3.2-1B"),
    ("language_model", "vicuna", "lmsys/vicuna-7b-v1.5"),
    ("language_model", "mistral", "mistralai/Mistral-7B-v0.1"),
    ("language_model", "qwen", "Qwen/Qwen2.5-0.5B"),
    ("language_model", "qwen", "Qwen/Qwen3-8B"),
    ("language_model", "gemma", "google/gemma-2-2b"),
    ("language_model", "gemma", "google/gemma-3-1b-pt"),
    ("language_model", "phi", "microsoft/Phi-3-mini-4k-instruct"),
    ("language_model", "causal-lm", "Qwen/Qwen3-8B"),
)


def test_a_spec_imports_no_networks(tmp_path: Path) -> None:
    parts: list[Part] = [(kind, name, {"pretrained": source}) for kind, name, source in KNOWN]
    assert heavy_imports(parts, tmp_path) == {}
