"""What a vision encoder has to know of a vision tower of the library: its classes, its names, its sizes.

N images, T tokens of one (those before the patches included), H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import transformers
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


class Architecture:
    """A tower whose config has `image_size` and `patch_size`, whose layers are in `layers`, and which norms at last.

    `model` and `processor` name the library's classes. Both import its networks, so they load at first use: a spec
    needs neither. `small` are the values of a miniature's config.
    """

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[type[PreTrainedConfig]]
    model: ClassVar[str]
    processor: ClassVar[str]
    layers: ClassVar[str] = "encoder.layers"
    last_norm: ClassVar[str] = "post_layernorm"
    small: ClassVar[Mapping[str, Any]] = SMALL

    @property
    def model_class(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.model)

    @property
    def processor_class(self) -> type[BaseImageProcessor]:
        return getattr(transformers, self.processor)

    def own_size(self, library_config: Any) -> int:
        """The side in pixels of the pictures whose position embeddings the model has."""
        return library_config.image_size

    def size_from(self, library_config: Any, made: int) -> int:
        """The side in pixels to read unasked, of a source whose processor makes pictures of `made`."""
        return self.own_size(library_config)

    def mistakes(self, library_config: Any) -> dict[str, str]:
        """What the values of a config cannot be, by their names."""
        size, patch = library_config.image_size, library_config.patch_size
        problems = not_whole(library_config, "image_size", "patch_size")
        if not problems and not 1 <= patch <= size:
            problems["patch_size"] = f"{patch} does not fit image_size {size}; make it 1 to {size}"
        return problems | not_rgb(library_config)

    def prefix_tokens(self, library_config: Any) -> int:
        """How many tokens come before those of the patches: class token and registers."""
        return 0

    def trim(self, library_config: Any, kept: int) -> list[str]:
        """Takes off the config what comes after the layers that are kept, so that it is neither made nor read.

        Returns:
            The names of what is then missing from the model, beside its last norm.
        """
        dropped = [f"{self.layers}.{index}" for index in range(kept, library_config.num_hidden_layers)]
        library_config.num_hidden_layers = kept
        return dropped

    def drop(self, model: Any) -> list[str]:
        """Takes out of a made model what its last layer's tokens do not depend on, and names it."""
        setattr(model, self.last_norm, nn.Identity())
        return [self.last_norm]

    def arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        """What the library's `forward` takes for pixels of any size that fits."""
        own = self.own_size(library_config)
        resized = tuple(pixels_NCHW.shape[-2:]) != (own, own)
        return {"pixel_values": pixels_NCHW, **({"interpolate_pos_encoding": True} if resized else {})}

    def default_processor(self, side: int) -> BaseImageProcessor:
        """The family's processor for square pictures, where no source has one."""
        raise NotImplementedError

    def written_shape(self, values: Mapping[str, Any], library_config: Any) -> tuple[int, int] | None:
        """Return the height and width of the images that a processor file asks for.

        Return None where they depend on the image, or on defaults of the processor's class.
        """
        size, crop = values.get("size"), values.get("crop_size")
        if type(size) is int:  # as in older files
            size = {"shortest_edge": size}
        if type(crop) is int:
            crop = {"height": crop, "width": crop}
        if not values.get("do_resize") or not _is_size(size):
            return None
        shape = crop if values.get("do_center_crop", crop is not None) else size
        return (shape["height"], shape["width"]) if _is_size(shape) and "height" in shape else None

    def read_processor(self, folder: Path, library_config: Any) -> BaseImageProcessor:
        """The processor in a folder; it makes square pictures. Raises what the library raises."""
        return self.processor_class.from_pretrained(folder, local_files_only=True)


def _is_size(size: Any) -> TypeGuard[Mapping[str, int]]:
    """Return whether this is a size as processors write it, with lengths that an image can have."""
    if not isinstance(size, Mapping) or {*size} not in ({"height", "width"}, {"shortest_edge"}):
        return False
    return all(type(length) is int and length > 0 for length in size.values())


def not_whole(library_config: Any, *names: str) -> dict[str, str]:
    """Of the named values, those that are no whole number."""
    values = {name: getattr(library_config, name) for name in names}
    return {
        name: f"{value!r} found, but a whole number is wanted"
        for name, value in values.items()
        if not isinstance(value, int)
    }


def not_rgb(library_config: Any) -> dict[str, str]:
    """A number of channels that is not a picture's."""
    channels = library_config.num_channels
    return {} if channels == 3 else {"num_channels": f"{channels} found, but pictures have 3"}
