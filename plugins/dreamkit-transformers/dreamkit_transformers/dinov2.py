"""DINOv2, arXiv 2304.07193, with and without register tokens, arXiv 2309.16588."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import Dinov2Config, Dinov2WithRegistersConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from dreamkit_transformers.architectures import SMALL, Architecture
from dreamkit_transformers.vision import VisionTower

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

CROP = 224 / 256  # how much of the shorter edge the published preprocessing keeps


class Dinov2Architecture(Architecture):
    """It has a class token, and a mask token that only its pretraining uses.

    It was trained on pictures of several sizes: the published ones have position embeddings for 518 pixels, and a
    processor that makes 224.
    """

    model_types = ("dinov2",)
    config_class: ClassVar[type[PreTrainedConfig]] = Dinov2Config
    model = "Dinov2Model"
    processor = "BitImageProcessor"
    layers = "encoder.layer"
    last_norm = "layernorm"
    small = {name: value for name, value in SMALL.items() if name != "intermediate_size"} | {"mlp_ratio": 2}

    def size_from(self, library_config: Any, made: int) -> int:
        return made

    def prefix_tokens(self, library_config: Any) -> int:
        return 1

    def drop(self, model: Any) -> list[str]:
        model.embeddings.mask_token = None
        return [*super().drop(model), "embeddings.mask_token"]

    def arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        return {"pixel_values": pixels_NCHW}  # it interpolates unasked

    def default_processor(self, side: int) -> BaseImageProcessor:
        return self.processor_class(
            size={"shortest_edge": round(side / CROP)},
            crop_size={"height": side, "width": side},
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )


class RegistersArchitecture(Dinov2Architecture):
    """It has register tokens after its class token."""

    model_types = ("dinov2_with_registers",)
    config_class = Dinov2WithRegistersConfig
    model = "Dinov2WithRegistersModel"

    def prefix_tokens(self, library_config: Any) -> int:
        return 1 + library_config.num_register_tokens


class Dinov2(VisionTower):
    """DINOv2. Its class token and registers are left out."""

    architectures = (Dinov2Architecture(), RegistersArchitecture())
    adapter_targets = ("q_proj", "k_proj", "v_proj", "o_proj")
