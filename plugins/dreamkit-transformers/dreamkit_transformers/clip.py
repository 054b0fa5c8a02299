"""CLIP's vision tower, arXiv 2103.00020."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import CLIPVisionConfig

from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.vision import VisionTower

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


class ClipArchitecture(Architecture):
    """CLIP's tower, with a class token."""

    model_types = ("clip_vision_model", "clip")
    config_class = CLIPVisionConfig
    model = "CLIPVisionModel"
    processor = "CLIPImageProcessor"

    def prefix_tokens(self, library_config: Any) -> int:
        return 1

    def default_processor(self, side: int) -> BaseImageProcessor:
        return self.processor_class(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


class Clip(VisionTower):
    """CLIP's vision tower, without its class token."""

    architectures = (ClipArchitecture(),)
