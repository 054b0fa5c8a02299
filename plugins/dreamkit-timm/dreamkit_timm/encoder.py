"""Any timm model with a grid of features as a vision encoder.

N images, V vision tokens of an image, H and W pixels, h and w rows and columns of features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from PIL.Image import Image as Picture
from timm.data import create_transform
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dreamkit import VisionEncoder, VisionSpec, to_rgb
from dreamkit_timm.making import cut, features, on_meta
from dreamkit_timm.models import Described, TimmConfig, describe, load

log = logging.getLogger(__name__)


class Timm(VisionEncoder):
    """The features of one block or stage. `dropped` names what comes after it, which is not kept.

    Adapters go into the layers that `adaptable` names: a ViT's are those of attention and MLP.
    """

    Config = TimmConfig
    adapter_root = "model"

    def __init__(self, config: TimmConfig, found: Described, model: Any, dropped: Sequence[str]) -> None:
        super().__init__()
        self.config, self.spec = config, found.spec
        self.layer, self.grid = found.layer, found.grid
        self.model: Any = model
        self.dropped = tuple(dropped)
        self.adapter_targets = found.adapted  # type: ignore[misc]  # each has its own
        with torch.device("cpu"):  # it holds tensors; pictures are real where a part is only outlined
            self.transform: Any = create_transform(**found.data_config, is_training=False)
        self.train()  # as it was made, but for batch norms

    @classmethod
    def tiny_config(cls) -> TimmConfig:
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
        return TimmConfig(config={"architecture": "vit_tiny_patch16_224", **sizes})

    @classmethod
    def tiny_convnet_config(cls) -> TimmConfig:
        """A ConvNeXt as small as `tiny_config`: the other kind of model that timm has."""
        sizes = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
        return TimmConfig(config={"architecture": "convnext_tiny", **sizes}, image_size=16)

    @classmethod
    def infer_spec(cls, config: TimmConfig) -> VisionSpec:
        return describe(config).spec

    @classmethod
    def meta_modules(cls, config: TimmConfig) -> Self:
        found = describe(config)
        return on_meta(lambda: cls._random(config, found), "config")

    @classmethod
    def from_config(cls, config: TimmConfig) -> Self:
        return cls._random(config, describe(config))

    @classmethod
    def from_pretrained(cls, config: TimmConfig) -> Self:
        found = describe(config)
        part = cls(config, found, *load(config, found))
        log.info("%s: layer %d needs no %s", config.pretrained, part.layer, ", ".join(part.dropped))
        return part

    @classmethod
    def _random(cls, config: TimmConfig, found: Described) -> Self:
        model = found.make()
        dropped = cut(model, found.layer)
        return cls(config, found, model, dropped)

    def train(self, mode: bool = True) -> Self:
        """Batch norms keep the statistics they came with, so that no picture's features depend on another's."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """Those that the features depend on; a few models make more than that."""

        def unreached() -> set[str]:
            outline = type(self).meta_modules(self.config)
            side = self.spec.image_size
            outline(torch.zeros(1, 3, side, side)).sum().backward()
            return {name for name, each in outline.named_parameters() if each.grad is None}

        unused = on_meta(unreached, "config")
        return [parameter for name, parameter in self.named_parameters() if name not in unused]

    def enable_gradient_checkpointing(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            log.info("%s recomputes no activations; they are kept", type(self.model).__name__)

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.stack([self.transform(to_rgb(picture)) for picture in pictures])

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self._tokens(features(self.model, self.layer, pixels_NCHW, stop_early=True))

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor:
        # the whole model, as timm makes it; what comes after the layer may be anything
        whole = describe(self.config).make()
        whole.load_state_dict(self.model.state_dict(), strict=False)
        return self._tokens(features(whole.to(pixels_NCHW).eval(), self.layer, pixels_NCHW))

    def _tokens(self, map_NChw: Tensor) -> Tensor:
        """The features of each place, row by row, pooled: (N, V, dim)."""
        return self.config.pooled(map_NChw.flatten(2).transpose(1, 2), self.grid)
