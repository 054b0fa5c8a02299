"""A vision tower of transformers as a part: the patch tokens of one layer. A family names its architectures.

N images, V vision tokens of an image, T tokens of the library's, H and W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit import (
    ConfigError,
    PoolingConfig,
    VisionEncoder,
    VisionSpec,
    did_you_mean,
    locate,
    to_rgb,
)
from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.configs import (
    KNOWN,
    config_from_dict,
    config_from_folder,
    gathering,
    load_weights,
    on_meta,
    raise_all,
    read_json,
    refuse,
)
from dreamkit_transformers.processors import PROCESSOR_FILE, SourceProcessor

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VisionConfig(PoolingConfig):
    """`layer` is the hidden state to use as transformers counts: 0 is the embeddings, -1 the last layer.

    `image_size` is the side in pixels of what is read, a multiple of the patch size; the model's own where it is None.
    Position embeddings are interpolated to it. `config` may name the library's `model_type`, where a family has two.
    """

    layer: int = -2
    image_size: int | None = None


@dataclass(frozen=True)
class _Described:
    """What files and settings say. The library's config is that of the whole model."""

    architecture: Architecture
    library_config: Any
    grid: tuple[int, int]
    spec: VisionSpec
    source: SourceProcessor | None  # None: a config has none

    def processor(self) -> BaseImageProcessor:
        side = self.spec.image_size
        with torch.device("cpu"):  # its images have values also where the part is on the meta device
            return (
                self.architecture.default_processor(side) if self.source is None else self.source.make(side)
            )


class VisionTower(VisionEncoder):
    """What the families have in common. `dropped` names what the chosen layer needs not."""

    Config = VisionConfig
    adapter_targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    adapter_root = "model"

    architectures: ClassVar[tuple[Architecture, ...]]

    def __init__(
        self,
        config: VisionConfig,
        found: _Described,
        processor: BaseImageProcessor,
        model: PreTrainedModel,
        dropped: Sequence[str],
    ) -> None:
        super().__init__()
        self.config, self.spec = config, found.spec
        self.architecture, self.grid, self.processor = found.architecture, found.grid, processor
        self.model: Any = model
        self.dropped = (*dropped, *self.architecture.drop(model))

    @classmethod
    def tiny_config(cls) -> VisionConfig:
        return VisionConfig(config=dict(cls.architectures[0].small))

    @classmethod
    def infer_spec(cls, config: VisionConfig) -> VisionSpec:
        found = cls._described(config)
        if config.pretrained is None:
            on_meta(lambda: cls._random(config, found)._tried())
        return found.spec

    @classmethod
    def meta_modules(cls, config: VisionConfig) -> Self:
        found = cls._described(config)
        return on_meta(lambda: cls._random(config, found))

    @classmethod
    def from_config(cls, config: VisionConfig) -> Self:
        return cls._random(config, cls._described(config))

    @classmethod
    def from_pretrained(cls, config: VisionConfig) -> Self:
        assert config.pretrained is not None, "the recipe gives either a source or a config"
        folder = cls._folder(config.pretrained, weights=True)
        found = cls._described(config)
        processor = found.processor()  # before the weights: it may be refused
        dropped = cls._trim(config, found)
        model = load_weights(found.architecture.model_class, folder, found.library_config)
        part = cls(config, found, processor, model, dropped)
        log.info("%s: layer %d needs no %s", folder, config.layer, ", ".join(part.dropped))
        return part

    @classmethod
    def _random(cls, config: VisionConfig, found: _Described) -> Self:
        processor = found.processor()
        dropped = cls._trim(config, found)
        model_class = found.architecture.model_class
        model = model_class._from_config(found.library_config, attn_implementation="sdpa")
        return cls(config, found, processor, model, dropped)

    @classmethod
    def _trim(cls, config: VisionConfig, found: _Described) -> list[str]:
        kept = _kept_layers(found.library_config, config.layer)
        return found.architecture.trim(found.library_config, kept)

    @classmethod
    def _described(cls, config: VisionConfig) -> _Described:
        """What can be told without weights.

        Raises:
            ConfigError: all that is wrong with files and settings.
        """
        folder = None if config.pretrained is None else cls._folder(config.pretrained, config.is_local)
        architecture, library_config = cls._architecture(config, folder)
        errors: list[ConfigError] = []
        with gathering(errors):
            refuse(architecture.mistakes(library_config), config)
        if not errors:
            with gathering(errors):
                _check_size(config, library_config.patch_size, architecture.own_size(library_config))
        with gathering(errors):
            _kept_layers(library_config, config.layer)
        raise_all(errors)
        source = None
        if folder is not None:
            source = SourceProcessor(architecture, library_config, folder, config.image_size)
        own_side = config.image_size or architecture.own_size(library_config)
        side = own_side if source is None else source.side()
        grid = (side // library_config.patch_size,) * 2
        tokens, dim = config.pooled_shape(grid, library_config.hidden_size)
        spec = VisionSpec(image_size=side, num_tokens=tokens, dim=dim)
        return _Described(architecture, library_config, grid, spec, source)

    @classmethod
    def _architecture(cls, config: VisionConfig, folder: Path | None) -> tuple[Architecture, Any]:
        """Which of the family's architectures it is, and the library's config."""
        by_type = {name: each for each in cls.architectures for name in each.model_types}
        if folder is not None:
            named = str(read_json(folder / "config.json").get("model_type"))
            found = by_type.get(named, cls.architectures[0])  # another family's is refused below
            return found, config_from_folder(found.config_class, folder, tuple(by_type))
        values = dict(config.config or {})
        wanted = values.pop("model_type", cls.architectures[0].model_types[0])
        if wanted not in by_type:
            said = f"'{wanted}' is no {cls.__name__} model; {did_you_mean(wanted, by_type)}"
            raise ConfigError({"config.model_type": said})
        return by_type[wanted], config_from_dict(by_type[wanted].config_class, values)

    @classmethod
    def _folder(cls, pretrained: str, weights: bool) -> Path:
        return locate(pretrained, ["config.json", PROCESSOR_FILE], weights=weights, known=KNOWN)

    def enable_gradient_checkpointing(self) -> None:
        self.model.activation_checkpointing_enable()

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        rgb = [to_rgb(picture) for picture in pictures]
        return self.processor(rgb, return_tensors="pt")["pixel_values"]

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        arguments = self.architecture.arguments(self.model.config, pixels_NCHW)
        return self._tokens(self.model(**arguments).last_hidden_state)

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor:
        # the whole tower, as the library makes it; what comes after the chosen layer may be anything
        found = self._described(self.config)
        tower = found.architecture.model_class._from_config(found.library_config, attn_implementation="sdpa")
        tower.load_state_dict(self.model.state_dict(), strict=False)
        arguments = found.architecture.arguments(found.library_config, pixels_NCHW)
        output = tower.to(pixels_NCHW).eval()(**arguments, output_hidden_states=True)
        return self._tokens(output.hidden_states[self.config.layer])

    def _tokens(self, hidden_NTd: Tensor) -> Tensor:
        """The tokens of the patches, pooled: (N, V, dim)."""
        prefix = self.architecture.prefix_tokens(self.model.config)
        return self.config.pooled(hidden_NTd[:, prefix:], self.grid)

    def _tried(self) -> Self:
        """Itself, after a forward pass: values that do not go together show only there."""
        size = self.spec.image_size
        self(torch.zeros(1, 3, size, size))
        return self


def _check_size(config: VisionConfig, patch: int, own: int) -> None:
    side = config.image_size
    if side is None or side == own or (side >= patch and side % patch == 0):
        return
    below = max(side // patch, 1) * patch
    fitting = f"{below}" if side < patch else f"{below} or {below + patch}"
    raise ConfigError(
        {
            "image_size": f"{side} found, but the encoder's patches have {patch} pixels along a side; give {fitting}"
        }
    )


def _kept_layers(library_config: Any, layer: int) -> int:
    layers = library_config.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise ConfigError(
            {
                "layer": f"layer {layer}, but the model has {layers} layers; "
                f"give {-layers - 1} to {layers} (0: the embeddings)"
            }
        )
    return layer if layer >= 0 else layers + 1 + layer
