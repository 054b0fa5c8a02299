"""A vision tower of transformers as a part: the patch tokens of one layer. Each family lists its architectures.

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
    count,
    did_you_mean,
    excerpt,
    locate,
    read_json,
    to_rgb,
)
from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.configs import (
    KNOWN,
    collect_errors,
    config_from_dict,
    config_from_folder,
    load_weights,
    on_meta,
    raise_collected,
    raise_problems,
    random_model,
)
from dreamkit_transformers.processors import PROCESSOR_FILES, SourceProcessor

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VisionConfig(PoolingConfig):
    """Settings of a vision encoder.

    `layer` is the hidden state to use, counted as in transformers: 0 is the embeddings, -1 the last layer.
    `image_size` is the side in pixels of the images to read, a multiple of the patch size; None is the model's own.
    Position embeddings are interpolated to it. `config` may name the `model_type` in a family of several.
    """

    layer: int = -2
    image_size: int | None = None


@dataclass(frozen=True)
class _Description:
    """A tower as its files and settings describe it. The library's config is that of the whole model."""

    architecture: Architecture
    library_config: Any
    grid: tuple[int, int]
    spec: VisionSpec
    source: SourceProcessor | None  # None: a part from a config

    def processor(self) -> BaseImageProcessor:
        side = self.spec.image_size
        with torch.device("cpu"):  # also where the part is on the meta device: processed images need values
            if self.source is None:
                return self.architecture.default_processor(side)
            return self.source.load(side)


class VisionTower(VisionEncoder):
    """The common part of all families. `dropped` names the modules that the chosen layer does not need."""

    Config = VisionConfig
    adapter_targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    adapter_root = "model"

    architectures: ClassVar[tuple[Architecture, ...]]

    def __init__(
        self,
        config: VisionConfig,
        description: _Description,
        processor: BaseImageProcessor,
        model: PreTrainedModel,
        dropped: Sequence[str],
    ) -> None:
        super().__init__()
        self.config, self.spec = config, description.spec
        self.architecture, self.grid, self.processor = description.architecture, description.grid, processor
        self.model: Any = model
        self.dropped = (*dropped, *self.architecture.drop_modules(model))

    @classmethod
    def tiny_config(cls) -> VisionConfig:
        return VisionConfig(config=dict(cls.architectures[0].tiny))

    @classmethod
    def infer_spec(cls, config: VisionConfig) -> VisionSpec:
        description = cls._describe(config)
        if config.pretrained is None:
            on_meta(lambda: cls._build_random(config, description)._run_once())
        return description.spec

    @classmethod
    def meta_modules(cls, config: VisionConfig) -> Self:
        description = cls._describe(config)
        return on_meta(lambda: cls._build_random(config, description))

    @classmethod
    def from_config(cls, config: VisionConfig) -> Self:
        return cls._build_random(config, cls._describe(config))

    @classmethod
    def from_pretrained(cls, config: VisionConfig) -> Self:
        part = cls._load(config)
        assert part is not None, "weights of any type can be read in float32"
        return part

    @classmethod
    def from_stored(cls, config: VisionConfig) -> Self | None:
        return cls._load(config, as_stored=True)

    @classmethod
    def _load(cls, config: VisionConfig, *, as_stored: bool = False) -> Self | None:
        assert config.pretrained is not None, "a recipe names a source or a config"
        folder = cls._folder(config.pretrained, weights=True)
        description = cls._describe(config)
        processor = description.processor()  # before the weights: it may be invalid
        on_meta(lambda: cls._build_random(config, cls._describe(config))._run_once(), config.pretrained)
        dropped = cls._drop_layers(config, description)
        model = load_weights(
            description.architecture.model_class, folder, description.library_config, as_stored=as_stored
        )
        if model is None:
            return None
        part = cls(config, description, processor, model, dropped)
        log.info("%s: layer %d does not need %s", folder, config.layer, ", ".join(part.dropped))
        return part

    @classmethod
    def _build_random(cls, config: VisionConfig, description: _Description) -> Self:
        processor = description.processor()
        dropped = cls._drop_layers(config, description)
        model = random_model(description.architecture.model_class, description.library_config)
        return cls(config, description, processor, model, dropped)

    @classmethod
    def _drop_layers(cls, config: VisionConfig, description: _Description) -> list[str]:
        count = _layer_count(description.library_config, config.layer)
        return description.architecture.drop_layers(description.library_config, count)

    @classmethod
    def _describe(cls, config: VisionConfig) -> _Description:
        """Describe the tower without weights.

        Raises:
            ConfigError: all problems of files and settings.
        """
        folder = None if config.pretrained is None else cls._folder(config.pretrained, config.is_local)
        architecture, library_config = cls._architecture(config, folder)
        errors: list[ConfigError] = []
        with collect_errors(errors):
            raise_problems(architecture.config_problems(library_config), config)
        if not errors:
            with collect_errors(errors):
                _check_size(config, library_config.patch_size, architecture.native_size(library_config))
        with collect_errors(errors):
            _layer_count(library_config, config.layer)
        raise_collected(errors)
        if folder is None:
            source, side = None, config.image_size or architecture.native_size(library_config)
            resized_side: int | None = architecture.default_resized_side(side)
        else:
            source = SourceProcessor(architecture, library_config, folder, config.image_size)
            side, resized_side = source.side(), source.resized_side()
        grid = (side // library_config.patch_size,) * 2
        tokens, dim = config.pooled_shape(grid, library_config.hidden_size)
        spec = VisionSpec(image_size=side, num_tokens=tokens, dim=dim, resized_side=resized_side)
        return _Description(architecture, library_config, grid, spec, source)

    @classmethod
    def _architecture(cls, config: VisionConfig, folder: Path | None) -> tuple[Architecture, Any]:
        """Return the family's architecture that the model has, and the library's config."""
        by_type = {name: each for each in cls.architectures for name in each.model_types}
        if folder is not None:
            model_type = str(read_json(folder / "config.json").get("model_type"))
            architecture = by_type.get(model_type, cls.architectures[0])  # config_from_folder rejects others
            return architecture, config_from_folder(architecture.config_class, folder, tuple(by_type))
        values = dict(config.config or {})
        model_type = values.pop("model_type", cls.architectures[0].model_types[0])
        if model_type not in by_type:
            expected, got = ", ".join(by_type), excerpt(repr(model_type))
            problem = f"expected one of {expected}, got {got}; {did_you_mean(model_type, by_type)}"
            raise ConfigError({"config.model_type": problem})
        return by_type[model_type], config_from_dict(by_type[model_type].config_class, values)

    @classmethod
    def _folder(cls, pretrained: str, weights: bool) -> Path:
        return locate(pretrained, ["config.json", PROCESSOR_FILES], weights=weights, known=KNOWN)

    def enable_gradient_checkpointing(self) -> None:
        self.model.activation_checkpointing_enable()

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        rgb = [to_rgb(picture) for picture in pictures]
        return self.processor(rgb, return_tensors="pt")["pixel_values"]

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        arguments = self.architecture.forward_arguments(self.model.config, pixels_NCHW)
        return self._tokens(self.model(**arguments).last_hidden_state)

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor:
        # the library's whole tower; the weights after the chosen layer, here random, do not matter
        description = self._describe(self.config)
        tower: Any = random_model(description.architecture.model_class, description.library_config)
        tower.load_state_dict(self.model.state_dict(), strict=False)
        arguments = description.architecture.forward_arguments(description.library_config, pixels_NCHW)
        output = tower.to(pixels_NCHW).eval()(**arguments, output_hidden_states=True)
        return self._tokens(output.hidden_states[self.config.layer])

    def _tokens(self, hidden_NTd: Tensor) -> Tensor:
        """Return the pooled tokens of the patches (N, V, dim)."""
        prefix = self.architecture.prefix_tokens(self.model.config)
        return self.config.pooled(hidden_NTd[:, prefix:], self.grid)

    def _run_once(self) -> None:
        """Run a forward pass, which fails if values of the config do not fit each other."""
        size = self.spec.image_size
        self(torch.zeros(1, 3, size, size))


def _check_size(config: VisionConfig, patch: int, native: int) -> None:
    """Raise ConfigError unless `config.image_size` is None, the native size, or a multiple of the patch size."""
    side = config.image_size
    if side is None or side == native or (side >= patch and side % patch == 0):
        return
    below = max(side // patch, 1) * patch
    nearest = f"{below}" if side < patch else f"{below} or {below + patch}"
    raise ConfigError(
        {"image_size": f"expected a multiple of the patch size {patch}, got {side}; set {nearest}"}
    )


def _layer_count(library_config: Any, layer: int) -> int:
    """Return the number of layers up to the hidden state `layer`; raise ConfigError if the model has fewer."""
    layers = library_config.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise ConfigError(
            {
                "layer": f"expected {-layers - 1} to {layers} (0: the embeddings), got {layer}; "
                f"the model has {count(layers, 'layer')}"
            }
        )
    return layer if layer >= 0 else layers + 1 + layer
