"""Vision towers of the library: classes, names of modules, and sizes.

N images, T tokens of one image including those before its patches, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import transformers
from torch import Tensor, nn

from dreamkit import excerpt
from dreamkit_transformers.processor_keys import SIZE_KEYS, is_plain

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


class Architecture:
    """A tower whose config has `image_size` and `patch_size`, with its layers in `layers` and a norm after them.

    `model` and `processor` name classes of the library, which import its networks. They load on first use: a spec
    needs neither. `crops`: the processor crops unless its file has another value. `tiny` holds the values of a tiny
    config.
    """

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[type[PreTrainedConfig]]
    model: ClassVar[str]
    processor: ClassVar[str]
    crops: ClassVar[bool] = True
    layers: ClassVar[str] = "encoder.layers"
    last_norm: ClassVar[str] = "post_layernorm"
    tiny: ClassVar[Mapping[str, Any]] = TINY

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The library's class of the tower."""
        return getattr(transformers, self.model)

    @property
    def processor_class(self) -> type[BaseImageProcessor]:
        """The library's class of the image processor."""
        return getattr(transformers, self.processor)

    def native_size(self, library_config: Any) -> int:
        """Return the side in pixels of the images that the position embeddings are for."""
        return library_config.image_size

    def default_size(self, library_config: Any, processor_size: int) -> int:
        """Return the side in pixels to read if the recipe sets none; the processor makes `processor_size` pixels."""
        return self.native_size(library_config)

    def config_problems(self, library_config: Any) -> dict[str, str]:
        """Return the problems with values of a config, by name."""
        size, patch = library_config.image_size, library_config.patch_size
        problems = integer_problems(library_config, "image_size", "patch_size")
        if not problems and not 1 <= patch <= size:
            problems["patch_size"] = f"expected 1 to {size} (image_size), got {patch}"
        return problems | channel_problems(library_config)

    def prefix_tokens(self, library_config: Any) -> int:
        """Return the number of tokens before the patches: class token and registers."""
        return 0

    def drop_layers(self, library_config: Any, count: int) -> list[str]:
        """Limit the config to the first `count` layers, so that later modules are neither built nor read.

        Return the names of these modules, except the last norm's.
        """
        dropped = [f"{self.layers}.{index}" for index in range(count, library_config.num_hidden_layers)]
        library_config.num_hidden_layers = count
        return dropped

    def drop_modules(self, model: Any) -> list[str]:
        """Remove from `model` the last norm and what its patch tokens do not depend on; return the removed names."""
        setattr(model, self.last_norm, nn.Identity())
        return [self.last_norm]

    def forward_arguments(self, library_config: Any, pixels_NCHW: Tensor) -> dict[str, Any]:
        """Return the arguments of the library's `forward` for pixels of any valid size."""
        native = self.native_size(library_config)
        resized = tuple(pixels_NCHW.shape[-2:]) != (native, native)
        return {"pixel_values": pixels_NCHW, **({"interpolate_pos_encoding": True} if resized else {})}

    def default_processor(self, side: int) -> BaseImageProcessor:
        """Return the family's processor, for a part without a source; it makes square images of `side` pixels."""
        raise NotImplementedError

    def processed_shape(self, values: Mapping[str, Any], library_config: Any) -> tuple[int, int] | None:
        """Return the height and width of the images that a processor with these file values makes.

        Return None if they depend on the image, on another class, or on values that the processor must check.
        """
        if not is_plain(values, self.processor, SIZE_KEYS):
            return None
        size, crop = values.get("size"), values.get("crop_size")
        if type(size) is int:  # as in older files
            size = {"shortest_edge": size}
        if type(crop) is int:
            crop = {"height": crop, "width": crop}
        crops = values.get("do_center_crop", self.crops)
        if values.get("do_resize") is not True or not _is_size(size) or crops != (crop is not None):
            return None  # the class decides
        shape = crop if crops else size
        return (shape["height"], shape["width"]) if _is_size(shape) and "height" in shape else None

    def resized_side(self, values: Mapping[str, Any], library_config: Any) -> int | None:
        """Return the side that such a processor resizes the shorter side of an image to, before any crop.

        Return None in the cases of `processed_shape`.
        """
        size = values.get("size")
        if self.processed_shape(values, library_config) is None:
            return None
        return size if type(size) is int else max(size.values())  # type: ignore[union-attr]  # a size

    def default_resized_side(self, side: int) -> int:
        """Return the same side for `default_processor`."""
        return side

    def processor_problems(self, processor: Any, library_config: Any) -> dict[str, str]:
        """Return the problems with a processor's values, by name."""
        return {}

    def square_processor(self, processor: Any) -> BaseImageProcessor:
        """Return a processor with the values of `processor` that makes square images."""
        return processor


def _is_size(size: Any) -> TypeGuard[Mapping[str, int]]:
    """Return True for a size as processors write it, with positive lengths."""
    if not isinstance(size, Mapping) or {*size} not in ({"height", "width"}, {"shortest_edge"}):
        return False
    return all(type(length) is int and length > 0 for length in size.values())


def integer_problems(library_config: Any, *names: str) -> dict[str, str]:
    """Return the problems with named values that are not integers."""
    values = {name: getattr(library_config, name) for name in names}
    return {
        name: f"expected an integer, got {excerpt(repr(value))}"
        for name, value in values.items()
        if not isinstance(value, int)
    }


def channel_problems(library_config: Any) -> dict[str, str]:
    """Return the problem with a number of channels other than 3."""
    channels = library_config.num_channels
    return {} if channels == 3 else {"num_channels": f"expected 3, the channels of an image, got {channels}"}
