"""SigLIP's vision tower, arXiv 2303.15343, and those of SigLIP 2, arXiv 2502.14786.

N images, G patches along a side, p pixels along one of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, Siglip2VisionConfig, SiglipVisionConfig

from dreamkit_transformers.architectures import (
    TINY,
    Architecture,
    channel_problems,
    integer_problems,
)
from dreamkit_transformers.processor_keys import COPIED_KEYS, PATCH_KEYS, is_plain
from dreamkit_transformers.vision import VisionTower

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


class SiglipArchitecture(Architecture):
    """SigLIP's tower, without a class token and without its pooling head."""

    model_types = ("siglip_vision_model", "siglip")
    config_class: ClassVar[type[PreTrainedConfig]] = SiglipVisionConfig
    model = "SiglipVisionModel"
    processor = "SiglipImageProcessor"
    crops = False

    def drop_layers(self, library_config: Any, count: int) -> list[str]:
        dropped = super().drop_layers(library_config, count)
        if library_config.vision_use_head:
            library_config.vision_use_head = False
            dropped.append("head")
        return dropped

    def default_processor(self, side: int) -> BaseImageProcessor:
        half = [0.5] * 3
        square = {"height": side, "width": side}
        return transformers.SiglipImageProcessor(size=square, image_mean=half, image_std=half)


class NaFlexArchitecture(SiglipArchitecture):
    """SigLIP 2 for any aspect ratio, used with square images. The library takes patches and the shape of their grid."""

    model_types = ("siglip2_vision_model", "siglip2")
    config_class = Siglip2VisionConfig
    model = "Siglip2VisionModel"
    processor = "Siglip2ImageProcessor"
    tiny = {name: value for name, value in TINY.items() if name != "image_size"} | {"num_patches": 4}

    def native_size(self, library_config: Any) -> int:
        return isqrt(library_config.num_patches) * library_config.patch_size

    def config_problems(self, library_config: Any) -> dict[str, str]:
        patches = library_config.num_patches
        problems = integer_problems(library_config, "patch_size") | channel_problems(library_config)
        side = isqrt(patches)
        if side**2 != patches:
            problems["num_patches"] = (
                f"expected a square number (position embeddings of a square grid), got {patches}; "
                f"set {side**2} or {(side + 1) ** 2}"
            )
        return problems

    def forward_arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        height, width = pixels_NCHW.shape[-2:]
        patch = library_config.patch_size
        grid = (height // patch, width // patch)
        patches = rearrange(pixels_NCHW, "n c (h p) (w q) -> n (h w) (p q c)", p=patch, q=patch)
        # The library reads these values, so they cannot be on the meta device. With one shape for all images it
        # resizes the position embeddings once.
        shapes = torch.tensor([grid], device="cpu")
        # without a mask: nothing is padded
        return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}

    def default_size(self, library_config: Any, processor_size: int) -> int:
        return processor_size

    def processed_shape(self, values: Mapping[str, Any], library_config: Any) -> tuple[int, int] | None:
        patch, count = values.get("patch_size"), values.get("max_num_patches")
        if not is_plain(values, self.processor, PATCH_KEYS):
            return None
        if values.get("do_resize") is not True or type(count) is not int or count < 1:
            return None
        side = isqrt(count) * library_config.patch_size
        return (side, side) if patch == library_config.patch_size else None

    def resized_side(self, values: Mapping[str, Any], library_config: Any) -> int | None:
        shape = self.processed_shape(values, library_config)
        return None if shape is None else shape[0]

    def processor_problems(self, processor: Any, library_config: Any) -> dict[str, str]:
        if type(processor).__name__ != self.processor:
            return {}
        patch = library_config.patch_size
        problems = {}
        if processor.patch_size != patch:
            problems["patch_size"] = f"expected {patch}, the model's patch_size, got {processor.patch_size}"
        if not processor.do_resize:
            problems["do_resize"] = "expected true, got false: images of any size cannot be cut into patches"
        return problems

    def square_processor(self, processor: Any) -> BaseImageProcessor:
        if type(processor).__name__ != self.processor:
            return processor  # one of square images already
        processor([Image.new("RGB", (1, 1))], return_tensors="pt")  # the library checks the values
        side = isqrt(processor.max_num_patches) * processor.patch_size
        copied = {name: getattr(processor, name) for name in COPIED_KEYS}
        return transformers.SiglipImageProcessor(size={"height": side, "width": side}, **copied)


class Siglip(VisionTower):
    """SigLIP's vision tower."""

    architectures = (SiglipArchitecture(),)


class Siglip2(VisionTower):
    """SigLIP 2's vision tower: NaFlex on square images, or one of fixed resolution, built as SigLIP's."""

    architectures = (NaFlexArchitecture(), SiglipArchitecture())
