"""CLIP and SigLIP as vision encoders: the patch tokens of one layer.

N images, V vision tokens of an image, H and W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dreamkit import ConfigError, PartConfig, SourceError, VisionEncoder, VisionSpec, locate, to_rgb
from dreamkit_transformers.configs import (
    config_from_dict,
    config_from_folder,
    gathering,
    load_weights,
    on_meta,
    one_line,
    quiet,
    raise_all,
    refuse,
)

log = logging.getLogger(__name__)

PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class VisionConfig(PartConfig):
    """`layer` is the hidden state to use as transformers counts: 0 is the embeddings, -1 the last layer."""

    layer: int = -2


class VisionTower(VisionEncoder):
    """What the two towers have in common. `dropped` names modules that the chosen layer needs not."""

    Config = VisionConfig
    adapter_targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    adapter_root = "model"

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type[BaseImageProcessor]]
    class_tokens: ClassVar[int]

    def __init__(
        self, config: VisionConfig, spec: VisionSpec, model: PreTrainedModel, processor: BaseImageProcessor
    ) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.model = model
        self.processor = processor
        self.dropped: tuple[str, ...] = ()

    @classmethod
    def miniature(cls) -> VisionConfig:
        sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 24}
        return VisionConfig(config={**sizes, "num_hidden_layers": 3, "num_attention_heads": 2})

    @classmethod
    def spec_from(cls, config: VisionConfig) -> VisionSpec:
        library_config, spec, processor = cls._described(config)
        if config.pretrained is None:
            on_meta(lambda: cls._random(config, library_config, spec, processor)._tried())
        return spec

    @classmethod
    def outline(cls, config: VisionConfig) -> Self:
        described = cls._described(config)
        return on_meta(lambda: cls._random(config, *described))

    @classmethod
    def from_config(cls, config: VisionConfig) -> Self:
        return cls._random(config, *cls._described(config))

    @classmethod
    def from_pretrained(cls, config: VisionConfig) -> Self:
        assert config.pretrained is not None, "the recipe gives either a source or a config"
        folder = cls._folder(config.pretrained, weights=True)
        library_config, spec, processor = cls._described(config)
        dropped = cls._truncate(library_config, config.layer)
        model = load_weights(cls.model_class, folder, library_config)
        part = cls(config, spec, model, processor)._drop(dropped)
        log.info("%s: layer %d needs no %s", folder, config.layer, ", ".join(part.dropped))
        return part

    @classmethod
    def _random(
        cls, config: VisionConfig, library_config: Any, spec: VisionSpec, processor: BaseImageProcessor
    ) -> Self:
        dropped = cls._truncate(library_config, config.layer)
        model = cls.model_class._from_config(library_config, attn_implementation="sdpa")
        return cls(config, spec, model, processor)._drop(dropped)

    @classmethod
    def _described(cls, config: VisionConfig) -> tuple[Any, VisionSpec, BaseImageProcessor]:
        """The library's config, the spec and the processor, without weights.

        Raises:
            ConfigError: all that is wrong with them.
        """
        if config.pretrained is None:
            library_config = config_from_dict(cls.config_class, config.config or {})
        else:
            folder = cls._folder(config.pretrained, weights=config.is_local)
            library_config = config_from_folder(cls.config_class, folder, cls.model_types)
        errors: list[ConfigError] = []
        with gathering(errors):
            refuse(_mistakes(library_config), config)
        with gathering(errors):
            _kept_layers(library_config, config.layer)
        raise_all(errors)
        side, patch = library_config.image_size, library_config.patch_size
        spec = VisionSpec(image_size=side, num_tokens=(side // patch) ** 2, dim=library_config.hidden_size)
        if config.pretrained is None:
            return library_config, spec, cls._default_processor(spec)
        return library_config, spec, cls._read_processor(folder, spec)

    def enable_gradient_checkpointing(self) -> None:
        self.model.activation_checkpointing_enable()

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        rgb = [to_rgb(picture) for picture in pictures]
        return self.processor(rgb, return_tensors="pt")["pixel_values"]

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        return self.model(pixel_values=pixels_NCHW).last_hidden_state[:, self.class_tokens :]

    def library_forward(self, pixels_NCHW: Tensor) -> Tensor:
        # the whole tower, as the library makes it; what comes after the chosen layer may be anything
        library_config, *_ = self._described(self.config)
        tower = self.model_class._from_config(library_config, attn_implementation="sdpa")
        tower.load_state_dict(self.model.state_dict(), strict=False)
        output = tower.to(pixels_NCHW).eval()(pixel_values=pixels_NCHW, output_hidden_states=True)
        return output.hidden_states[self.config.layer][:, self.class_tokens :]

    @classmethod
    def _folder(cls, pretrained: str, weights: bool) -> Path:
        return locate(pretrained, ["config.json", PROCESSOR_FILE], weights=weights)

    @classmethod
    def _truncate(cls, library_config: Any, layer: int) -> list[str]:
        """Takes the layers after the chosen one off the config, so that they are neither made nor read."""
        kept = _kept_layers(library_config, layer)
        dropped = [f"encoder.layers.{index}" for index in range(kept, library_config.num_hidden_layers)]
        library_config.num_hidden_layers = kept
        return dropped

    def _drop(self, dropped: Sequence[str]) -> Self:
        """Takes out what comes after the layers."""
        self.model.post_layernorm = nn.Identity()
        self.dropped = (*dropped, "post_layernorm")
        return self

    def _tried(self) -> Self:
        """Itself, after a forward pass: values that do not go together show only there."""
        size = self.spec.image_size
        self(torch.zeros(1, 3, size, size))
        return self

    @classmethod
    def _default_processor(cls, spec: VisionSpec) -> BaseImageProcessor:
        raise NotImplementedError

    @classmethod
    def _read_processor(cls, folder: Path, spec: VisionSpec) -> BaseImageProcessor:
        file = folder / PROCESSOR_FILE
        oblong = Image.new("RGB", (3, 5))
        try:
            with quiet():
                processor = cls.processor_class.from_pretrained(folder, local_files_only=True)
                made = tuple(processor([oblong], return_tensors="pt")["pixel_values"].shape[1:])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            name = cls.processor_class.__name__
            raise SourceError(f"{file}: {name} refuses it: {one_line(error)}") from error
        wanted = (3, spec.image_size, spec.image_size)
        if made != wanted:
            raise SourceError(
                f"{file} makes pixels of shape {made}, but config.json says that the model reads {wanted}; "
                "change its size and crop_size, or the model's image_size"
            )
        return processor


class Clip(VisionTower):
    """CLIP's vision tower, arXiv 2103.00020. Its class token is left out."""

    model_types = ("clip_vision_model", "clip")
    config_class = CLIPVisionConfig
    model_class = CLIPVisionModel
    processor_class = CLIPImageProcessor
    class_tokens = 1

    @classmethod
    def _default_processor(cls, spec: VisionSpec) -> BaseImageProcessor:
        side = spec.image_size
        return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


class Siglip(VisionTower):
    """SigLIP's vision tower, arXiv 2303.15343."""

    model_types = ("siglip_vision_model", "siglip")
    config_class = SiglipVisionConfig
    model_class = SiglipVisionModel
    processor_class = SiglipImageProcessor
    class_tokens = 0

    @classmethod
    def _truncate(cls, library_config: Any, layer: int) -> list[str]:
        dropped = super()._truncate(library_config, layer)
        if library_config.vision_use_head:
            library_config.vision_use_head = False
            dropped.append("head")
        return dropped

    @classmethod
    def _default_processor(cls, spec: VisionSpec) -> BaseImageProcessor:
        side = spec.image_size
        half = [0.5] * 3
        return SiglipImageProcessor(size={"height": side, "width": side}, image_mean=half, image_std=half)


def _mistakes(library_config: Any) -> dict[str, str]:
    """What the values of a config cannot be, by their names."""
    size, patch = library_config.image_size, library_config.patch_size
    problems = {
        name: f"{value!r} found, but a whole number is wanted"
        for name, value in (("image_size", size), ("patch_size", patch))
        if not isinstance(value, int)
    }
    if library_config.num_channels != 3:
        problems["num_channels"] = f"{library_config.num_channels} found, but pictures have 3"
    if not problems and not 1 <= patch <= size:
        problems["patch_size"] = f"{patch} does not fit image_size {size}; make it 1 to {size}"
    return problems


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
