"""The image processor of a source, and the size of the images that it makes.

The size is read from the processor's file. The processor's class imports the library's networks, so it loads only
to process images, or if the file does not determine the size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamkit import SourceError, describe_error
from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.configs import quiet_library, read_json

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class SourceProcessor:
    """The processor in a folder, scaled to make images of `image_size` pixels a side unless that is None."""

    architecture: Architecture
    library_config: Any
    folder: Path
    image_size: int | None

    @property
    def file(self) -> Path:
        """The processor's file."""
        return self.folder / PROCESSOR_FILE

    def side(self) -> int:
        """Return the side in pixels of the square images that the processor makes.

        Raises:
            SourceError: the library rejects the file, or the model does not accept images of this shape.
        """
        shape = self.architecture.processed_shape(read_json(self.file), self.library_config)
        if shape is None:
            with self._source_errors():
                shape = _processed_shape(self._read())
        side = self.image_size or self.architecture.default_size(self.library_config, shape[-1])
        if self.image_size is not None:
            shape = round(shape[0] * side / shape[1]), side
        self._check(shape, side)
        return side

    def load(self, side: int) -> BaseImageProcessor:
        """Return the processor, which makes images of `side` pixels.

        Raises:
            SourceError: the library rejects the file, or the processor makes images of another shape.
        """
        with self._source_errors():
            processor = self._read()
            shape = _processed_shape(processor)
            if self.image_size not in (None, shape[-1]):
                for name in ("size", "crop_size"):
                    _scale(processor, name, side / shape[-1])
                shape = _processed_shape(processor)
        self._check(shape, side)
        return processor

    def _read(self) -> Any:
        return self.architecture.read_processor(self.folder, self.library_config)

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """Raise the library's errors about the file as SourceError."""
        try:
            with quiet_library():
                yield
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{self.file}: invalid for {self.architecture.processor}: {describe_error(error)}"
            raise SourceError(message) from error

    def _check(self, shape: tuple[int, int], side: int) -> None:
        """Raise SourceError unless `shape` is a square of `side` pixels that the model accepts."""
        config = self.library_config
        if shape != (side, side):
            setting = "config.json" if self.image_size is None else "image_size"
            raise SourceError(
                f"{self.file}: expected pixels of shape {(3, side, side)} ({setting}), got {(3, *shape)}; "
                "change its size and crop_size, or the model's image_size"
            )
        if side % config.patch_size and side != self.architecture.native_size(config):
            raise SourceError(
                f"{self.file}: expected images with a multiple of {config.patch_size} pixels (patch_size) a side, "
                f"got {side}; set image_size to a multiple"
            )


def _processed_shape(processor: Any) -> tuple[int, int]:
    """Return the height and width of the image that a processor makes of an oblong one."""
    oblong = Image.new("RGB", (3, 5))
    height, width = processor([oblong], return_tensors="pt")["pixel_values"].shape[-2:]
    return height, width


def _scale(processor: Any, name: str, factor: float) -> None:
    """Multiply the lengths of the processor's size `name`, if set."""
    size = getattr(processor, name, None)
    if size is not None:
        lengths = {edge: round(length * factor) for edge, length in dict(size).items() if length}
        setattr(processor, name, lengths)
