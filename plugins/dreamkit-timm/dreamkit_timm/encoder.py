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
from dreamkit_timm.creating import create_model, features, on_meta, prune
from dreamkit_timm.models import Description, TimmConfig, describe, load

log = logging.getLogger(__name__)


class Timm(VisionEncoder):
    """The features of one block or stage. `dropped` names the removed modules that come after it.

    Adapters go into the layers of `adapter_layers`: in a ViT, those of attention and MLP.
    """

    Config = TimmConfig
    adapter_root = "model"
    shard_units = ("Block", "EvaBlock", "EvaBlockPostNorm")  # of vision transformers

    def __init__(
        self, config: TimmConfig, description: Description, model: Any, dropped: Sequence[str]
    ) -> None:
        super().__init__()
        self.config, self.spec = config, description.spec
        self.layer, self.grid = description.layer, description.grid
        self.model: Any = model
        self.dropped = tuple(dropped)
        self.adapter_targets = description.adapter_layers  # type: ignore[misc]  # differ between models
        with torch.device("cpu"):  # the transform has tensors, and images are real even for modules on meta
            self.transform: Any = create_transform(**description.data_config, is_training=False)
        self.train()  # the default mode, except for batch norms

    @classmethod
    def tiny_config(cls) -> TimmConfig:
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
        return TimmConfig(config={"architecture": "vit_tiny_patch16_224", **sizes})

    @classmethod
    def tiny_convnet_config(cls) -> TimmConfig:
        """Return a ConvNeXt as small as `tiny_config`, for the other kind of model in timm."""
        sizes = {"patch_size": 1, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
        return TimmConfig(config={"architecture": "convnext_tiny", **sizes}, image_size=16)

    @classmethod
    def infer_spec(cls, config: TimmConfig) -> VisionSpec:
        return describe(config).spec

    @classmethod
    def meta_modules(cls, config: TimmConfig) -> Self:
        description = describe(config)
        return on_meta(lambda: cls._random(config, description), "config")

    @classmethod
    def from_config(cls, config: TimmConfig) -> Self:
        return cls._random(config, describe(config))

    @classmethod
    def from_pretrained(cls, config: TimmConfig) -> Self:
        description = describe(config)
        part = cls(config, description, *load(config, description))
        log.info("%s: layer %d needs no %s", config.pretrained, part.layer, ", ".join(part.dropped))
        return part

    @classmethod
    def _random(cls, config: TimmConfig, description: Description) -> Self:
        model = create_model(description.name, description.arguments)
        dropped = prune(model, description.layer)
        return cls(config, description, model, dropped)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, except for batch norms: their statistics stay, so no image's features depend on another."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the features depend on; a few models have others too."""

        def unreached() -> set[str]:
            part = type(self).meta_modules(self.config)
            side = self.spec.image_size
            part(torch.zeros(1, 3, side, side)).sum().backward()
            return {name for name, parameter in part.named_parameters() if parameter.grad is None}

        unused = on_meta(unreached, "config")
        return [parameter for name, parameter in self.named_parameters() if name not in unused]

    def enable_gradient_checkpointing(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            log.warning("%s: gradient checkpointing has no effect", type(self.model).__name__)

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        return torch.stack([self.transform(to_rgb(picture)) for picture in pictures])

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self._tokens(features(self.model, self.layer, pixels_NCHW, stop_early=True))

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor:
        # timm's whole model; the layers after `layer` may have any weights
        description = describe(self.config)
        whole = create_model(description.name, description.arguments)
        whole.load_state_dict(self.model.state_dict(), strict=False)
        return self._tokens(features(whole.to(pixels_NCHW).eval(), self.layer, pixels_NCHW))

    def _tokens(self, features_NChw: Tensor) -> Tensor:
        """Return the features of each place, row by row and pooled: (N, V, dim)."""
        return self.config.pooled(features_NChw.flatten(2).transpose(1, 2), self.grid)
