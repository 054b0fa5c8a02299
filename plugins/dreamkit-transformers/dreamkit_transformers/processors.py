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

import transformers
from PIL import Image

from dreamkit import SourceError, count, excerpt, library_errors, read_json
from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.configs import quiet_library
from dreamkit_transformers.processor_keys import class_name

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = (
    "processor_config.json"  # of a processor with a tokenizer; it may have an image processor's values
)
IMAGE_PROCESSOR_KEY = "image_processor"
PROCESSOR_FILES = f"{IMAGE_PROCESSOR_FILE}|{PROCESSOR_FILE}"
OBLONGS = (((3, 5), "black"), ((96, 40), "white"))  # widths and heights, and the extreme values of pixels


@dataclass(frozen=True)
class SourceProcessor:
    """The processor in a folder, scaled to make images of `image_size` pixels a side unless that is None."""

    architecture: Architecture
    library_config: Any
    folder: Path
    image_size: int | None

    @property
    def file(self) -> Path:
        """The processor's file: where both have the values, the library reads those of the larger processor."""
        own, whole = self.folder / IMAGE_PROCESSOR_FILE, self.folder / PROCESSOR_FILE
        if whole.is_file() and (not own.is_file() or IMAGE_PROCESSOR_KEY in read_json(whole)):
            return whole
        return own

    def values(self) -> dict[str, Any]:
        """Return the values of the image processor.

        Raises:
            SourceError: the file cannot be read or has no image processor.
        """
        values = read_json(self.file)
        if self.file.name == IMAGE_PROCESSOR_FILE:
            return values
        inner = values.get(IMAGE_PROCESSOR_KEY)
        if not isinstance(inner, dict):
            shown = "none" if inner is None else type(inner).__name__
            raise SourceError(
                f"{self.file}: expected a JSON object '{IMAGE_PROCESSOR_KEY}', got {shown}; add {IMAGE_PROCESSOR_FILE} "
                "of the model"
            )
        return inner

    def side(self) -> int:
        """Return the side in pixels of the square images that the processor makes.

        Raises:
            SourceError: the library rejects the file, or the model does not accept images of this shape.
        """
        shape = self.architecture.processed_shape(self.values(), self.library_config)
        if shape is None:
            with self._source_errors():
                shape = _processed_shape(self._read())
        side = self.image_size or self.architecture.default_size(self.library_config, shape[-1])
        if self.image_size is not None:
            shape = round(shape[0] * side / shape[1]), side
        self._check(shape, side)
        return side

    def resized_side(self) -> int | None:
        """Return the side that the processor resizes the shorter side of an image to; None if its class decides."""
        values = self.values()
        shape = self.architecture.processed_shape(values, self.library_config)
        resized = self.architecture.resized_side(values, self.library_config)
        if shape is None or resized is None or self.image_size is None:
            return resized
        return round(resized * self.image_size / shape[-1])

    def load(self, side: int) -> BaseImageProcessor:
        """Return the processor, which makes images of `side` pixels.

        Raises:
            SourceError: the library rejects the file, or the processor makes images of another shape.
        """
        with self._source_errors():
            processor = self._read()
            shape = _processed_shape(processor)
            if self.image_size not in (None, shape[-1]):
                for name in ("size", "crop_size", "pad_size"):
                    _scale(processor, name, side / shape[-1])
                shape = _processed_shape(processor)
        self._check(shape, side)
        return processor

    def _read(self) -> Any:
        """Return the processor of the class that the file names, else of the architecture's."""
        named = class_name(self.values()) is not None
        cls: Any = transformers.AutoImageProcessor if named else self.architecture.processor_class
        processor = cls.from_pretrained(self.folder, local_files_only=True)
        processor.device = None  # of the computer that wrote the file
        problems = self.architecture.processor_problems(processor, self.library_config)
        if problems:
            joined = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
            raise SourceError(f"{self.file}: {joined}")
        return self.architecture.square_processor(processor)

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """Raise the library's errors about the file as SourceError."""
        name = excerpt(class_name(self.values()) or self.architecture.processor)
        with library_errors(f"{self.file}: invalid for {name}"), quiet_library():
            yield

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
                f"{self.file}: expected images with a multiple of {count(config.patch_size, 'pixel')} (patch_size) a "
                f"side, got {side}; set image_size to a multiple"
            )


def _processed_shape(processor: Any) -> tuple[int, int]:
    """Return the height and width of the images that a processor makes of two oblong ones; if these differ, of one.

    Raises:
        ValueError: it makes something else than an image of an image, or pixels that are not finite.
    """
    shapes = []
    for size, color in OBLONGS:
        pixels = processor([Image.new("RGB", size, color)], return_tensors="pt")["pixel_values"]
        if pixels.shape[:-2] != (1, 3):
            raise ValueError(f"expected pixels of shape (1, 3, H, W) of an image, got {tuple(pixels.shape)}")
        if not pixels.isfinite().all():
            raise ValueError(
                "expected finite pixels of an image, got inf or NaN; set image_mean, rescale_factor to finite numbers "
                "and image_std to positive ones"
            )
        shapes.append((pixels.shape[-2], pixels.shape[-1]))
    # not a square, if either is not
    return next((shape for shape in shapes if shape[0] != shape[1] or shape != shapes[0]), shapes[0])


def _scale(processor: Any, name: str, factor: float) -> None:
    """Multiply the lengths of the processor's size `name`, if set."""
    size = getattr(processor, name, None)
    if size is not None:
        lengths = {edge: round(length * factor) for edge, length in dict(size).items() if length}
        setattr(processor, name, lengths)
