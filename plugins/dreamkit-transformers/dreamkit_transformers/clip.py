"""CLIP's vision tower, arXiv 2103.00020."""

from __future__ import annotations

from typing import Any

from transformers import BaseImageProcessor, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.vision import VisionTower


class ClipArchitecture(Architecture):
    """It has a class token."""

    model_types = ("clip_vision_model", "clip")
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    processor_class = CLIPImageProcessor

    def prefix_tokens(self, library_config: Any) -> int:
        return 1

    def default_processor(self, side: int) -> BaseImageProcessor:
        return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


class Clip(VisionTower):
    """CLIP's vision tower. Its class token is left out."""

    architectures = (ClipArchitecture(),)
