"""DINOv2, arXiv 2304.07193, with and without register tokens, arXiv 2309.16588."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import Dinov2Config, Dinov2WithRegistersConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dreamkit_transformers.architectures import TINY, Architecture
from dreamkit_transformers.vision import VisionTower

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

CROP = 224 / 256  # share of the shorter edge in the crop of the published preprocessing


class Dinov2Architecture(Architecture):
    """DINOv2's tower, with a class token and a mask token that only pretraining uses.

    It was trained on images of several sizes: the published models have position embeddings for 518 pixels and a
    processor that makes 224.
    """

    model_types = ("dinov2",)
    config_class: ClassVar[type[PreTrainedConfig]] = Dinov2Config
    model = "Dinov2Model"
    processor = "BitImageProcessor"
    layers = "encoder.layer"
    last_norm = "layernorm"
    tiny = {name: value for name, value in TINY.items() if name != "intermediate_size"} | {"mlp_ratio": 2}

    def default_size(self, library_config: Any, processor_size: int) -> int:
        return processor_size

    def prefix_tokens(self, library_config: Any) -> int:
        return 1

    def drop_modules(self, model: Any) -> list[str]:
        model.embeddings.mask_token = None
        return [*super().drop_modules(model), "embeddings.mask_token"]

    def forward_arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        return {"pixel_values": pixels_NCHW}  # always interpolates position embeddings

    def default_resized_side(self, side: int) -> int:
        return round(side / CROP)

    def default_processor(self, side: int) -> BaseImageProcessor:
        return self.processor_class(
            size={"shortest_edge": self.default_resized_side(side)},
            crop_size={"height": side, "width": side},
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )


class RegistersArchitecture(Dinov2Architecture):
    """DINOv2's tower with register tokens after its class token."""

    model_types = ("dinov2_with_registers",)
    config_class = Dinov2WithRegistersConfig
    model = "Dinov2WithRegistersModel"

    def prefix_tokens(self, library_config: Any) -> int:
        return 1 + library_config.num_register_tokens


class Dinov2(VisionTower):
    """DINOv2, without its class token and registers."""

    architectures = (Dinov2Architecture(), RegistersArchitecture())
    adapter_targets = ("q_proj", "k_proj", "v_proj", "o_proj")
