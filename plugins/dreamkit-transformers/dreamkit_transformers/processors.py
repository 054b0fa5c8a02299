"""The image processor of a source: the size of the images that it makes, and the processor itself.

Its file says the size. Its class is imported only to process images, or where the file leaves the size open: the
library's networks come with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamkit import SourceError
from dreamkit_transformers.architectures import Architecture
from dreamkit_transformers.configs import one_line, quiet, read_json

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

PROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class SourceProcessor:
    """The processor in a folder, scaled to make images of `wanted` pixels a side where that is not None."""

    architecture: Architecture
    library_config: Any
    folder: Path
    wanted: int | None

    @property
    def file(self) -> Path:
        return self.folder / PROCESSOR_FILE

    def side(self) -> int:
        """Return the side in pixels of the square images that it makes.

        Raises:
            SourceError: the library refuses the file, or the model does not read such images.
        """
        made = self.architecture.written_shape(read_json(self.file), self.library_config)
        if made is None:
            with self._refusals():
                made = _made(self._read())
        side = self.wanted or self.architecture.size_from(self.library_config, made[-1])
        if self.wanted is not None:
            made = round(made[0] * side / made[1]), side
        self._check(made, side)
        return side

    def make(self, side: int) -> BaseImageProcessor:
        """Return the processor, which makes images of `side` pixels.

        Raises:
            SourceError: the library refuses the file, or the processor makes other images.
        """
        with self._refusals():
            processor = self._read()
            made = _made(processor)
            if self.wanted not in (None, made[-1]):
                for name in ("size", "crop_size"):
                    _scale(processor, name, side / made[-1])
                made = _made(processor)
        self._check(made, side)
        return processor

    def _read(self) -> Any:
        return self.architecture.read_processor(self.folder, self.library_config)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise a SourceError for what the library raises about the file."""
        try:
            with quiet():
                yield
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            said = f"{self.architecture.processor} refuses it: {one_line(error)}"
            raise SourceError(f"{self.file}: {said}") from error

    def _check(self, made: tuple[int, int], side: int) -> None:
        """Raise a SourceError unless images of the height and width in `made` are squares that the model reads."""
        config, shape = self.library_config, (3, *made)
        if shape != (3, side, side):
            reason = "config.json says that the model reads" if self.wanted is None else "image_size asks for"
            raise SourceError(
                f"{self.file} makes pixels of shape {shape}, but {reason} {(3, side, side)}; "
                "change its size and crop_size, or the model's image_size"
            )
        if side % config.patch_size and side != self.architecture.own_size(config):
            raise SourceError(
                f"{self.file} makes pixels of shape {shape}, but the model's patches have {config.patch_size} pixels "
                "along a side; set image_size to a multiple of that"
            )


def _made(processor: Any) -> tuple[int, int]:
    """Return the height and width of the image that a processor makes of an oblong one."""
    oblong = Image.new("RGB", (3, 5))
    height, width = processor([oblong], return_tensors="pt")["pixel_values"].shape[-2:]
    return height, width


def _scale(processor: Any, name: str, factor: float) -> None:
    """Multiplies a processor's size, where it has it."""
    size = getattr(processor, name, None)
    if size is not None:
        setattr(
            processor, name, {edge: round(length * factor) for edge, length in dict(size).items() if length}
        )
