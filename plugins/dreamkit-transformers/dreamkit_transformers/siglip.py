"""SigLIP's vision tower, arXiv 2303.15343, and those of SigLIP 2, arXiv 2502.14786.

N images, G patches along a side, p pixels along one of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedConfig, Siglip2VisionConfig, SiglipVisionConfig

from dreamkit_transformers.architectures import SMALL, Architecture, not_rgb, not_whole
from dreamkit_transformers.vision import VisionTower

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


class SiglipArchitecture(Architecture):
    """It has no class token, but a head that pools, which is not made."""

    model_types = ("siglip_vision_model", "siglip")
    config_class: ClassVar[type[PreTrainedConfig]] = SiglipVisionConfig
    model = "SiglipVisionModel"
    processor = "SiglipImageProcessor"

    def trim(self, library_config: Any, kept: int) -> list[str]:
        dropped = super().trim(library_config, kept)
        if library_config.vision_use_head:
            library_config.vision_use_head = False
            dropped.append("head")
        return dropped

    def default_processor(self, side: int) -> BaseImageProcessor:
        half = [0.5] * 3
        square = {"height": side, "width": side}
        return transformers.SiglipImageProcessor(size=square, image_mean=half, image_std=half)


class NaFlexArchitecture(SiglipArchitecture):
    """SigLIP 2 for any aspect ratio, given square pictures: the library takes patches and their numbers."""

    model_types = ("siglip2_vision_model", "siglip2")
    config_class = Siglip2VisionConfig
    model = "Siglip2VisionModel"
    processor = "Siglip2ImageProcessor"
    small = {name: value for name, value in SMALL.items() if name != "image_size"} | {"num_patches": 4}

    def own_size(self, library_config: Any) -> int:
        return isqrt(library_config.num_patches) * library_config.patch_size

    def mistakes(self, library_config: Any) -> dict[str, str]:
        patches = library_config.num_patches
        problems = not_whole(library_config, "patch_size") | not_rgb(library_config)
        side = isqrt(patches)
        if side**2 != patches:
            problems["num_patches"] = (
                f"{patches} found, but position embeddings of a square grid are wanted; "
                f"give {side**2} or {(side + 1) ** 2}"
            )
        return problems

    def arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        height, width = pixels_NCHW.shape[-2:]
        patch = library_config.patch_size
        grid = (height // patch, width // patch)
        patches = rearrange(pixels_NCHW, "n c (h p) (w q) -> n (h w) (p q c)", p=patch, q=patch)
        # Without a device of its own it would be made on the one where a part is outlined, whose values are not there
        # to be read; and one shape for all images has the position embeddings resized once.
        shapes = torch.tensor([grid], device="cpu")
        # no mask: nothing is padded
        return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}

    def written_shape(self, values: Mapping[str, Any], library_config: Any) -> tuple[int, int]:
        side = self.own_size(library_config)
        return side, side

    def read_processor(self, folder: Path, library_config: Any) -> BaseImageProcessor:
        found: Any = super().read_processor(folder, library_config)
        side = self.own_size(library_config)
        return transformers.SiglipImageProcessor(
            size={"height": side, "width": side},
            resample=found.resample,
            do_rescale=found.do_rescale,
            rescale_factor=found.rescale_factor,
            do_normalize=found.do_normalize,
            image_mean=found.image_mean,
            image_std=found.image_std,
        )


class Siglip(VisionTower):
    """SigLIP's vision tower."""

    architectures = (SiglipArchitecture(),)


class Siglip2(VisionTower):
    """SigLIP 2's vision tower: NaFlex on square pictures, or one of fixed resolution, which is built as SigLIP's."""

    architectures = (NaFlexArchitecture(), SiglipArchitecture())
