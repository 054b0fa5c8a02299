"""The computation of a table's rows by the part that is cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit.cache.manifest import PART_OF, Table, TensorRecord
from dreamkit.cache.model_check import plugin_errors, table_module
from dreamkit.cache.new_images import PICTURES
from dreamkit.cache.read import EXTRAS
from dreamkit.cache.shards import KEY_BYTES, ShardWriter, picture_key, tensor_record
from dreamkit.data.sequence import blank_picture
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import computing_in

# The preprocessed tensor that a part computes from; other tensors are stored as they are.
PIXELS: Final = "pixels"

Preprocess: TypeAlias = Callable[[Sequence[Picture]], Any]  # of a vision encoder or an image decoder


class TableBuilder:
    """The computation of a table's rows. Images of a block wait until they fill a batch.

    The part is moved to `device`, and computes in `train.precision`. The row of the blank image is computed at once, so
    a part that fails does so early.

    Raises:
        CacheError: an error in the code of the part.
    """

    def __init__(self, table: Table, model: DreamModel, device: torch.device, precision: str) -> None:
        self.table, self.model, self.device, self.precision = table, model, device, precision
        self._waiting: dict[bytes, dict[str, Tensor]] = {}
        table_module(model, table).to(device)
        blank = blank_picture()
        with plugin_errors(model, table, "preprocess"):
            inputs = preprocess(self.preprocess, [blank])
        self.blank_key = picture_key(blank)
        self._blank = self._rows(inputs)

    @property
    def preprocess(self) -> Preprocess:
        return self.model.parts()[PART_OF[self.table]].preprocess  # type: ignore[return-value]

    @property
    def tensors(self) -> dict[str, TensorRecord]:
        """The dtype and shape of each tensor in a row."""
        return {name: tensor_record(tensor[0]) for name, tensor in self._blank.items()}

    @property
    def row_bytes(self) -> int:
        return KEY_BYTES + sum(tensor.nbytes for tensor in self._blank.values())

    def rows_per_file(self, limit: int) -> int:
        """Return the number of rows in a file of at most `limit` bytes, or 1."""
        return max(1, limit // (self.row_bytes - KEY_BYTES))

    def add(self, writer: ShardWriter, keys: Sequence[bytes], inputs: Mapping[str, Tensor]) -> None:
        """Write the rows of images, in batches; `inputs` are their preprocessed tensors (N, ...)."""
        for number, key in enumerate(keys):
            self._waiting[key] = {name: tensor[number] for name, tensor in inputs.items()}
            if len(self._waiting) == PICTURES:
                self._compute(writer)

    def finish(self, writer: ShardWriter, *, has_blank: bool) -> None:
        """Write the remaining rows of a block. With `has_blank`, the row of the blank image is the last one.

        That row completes a batch that has no image to read or to draw.
        """
        if self._waiting:
            self._compute(writer)
        if has_blank:
            writer.add([self.blank_key], self._blank)
        writer.flush()

    def _compute(self, writer: ShardWriter) -> None:
        rows = [*self._waiting.values()]
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        writer.add([*self._waiting], self._rows(inputs))
        self._waiting = {}

    @torch.no_grad()
    def _rows(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors (N, ...) of the table for preprocessed images."""
        rows = {name: tensor for name, tensor in inputs.items() if name != PIXELS}
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        pixels_NCHW = inputs[PIXELS].to(self.device, dtype)
        with computing_in(self.precision, self.device.type):
            return self._outputs(pixels_NCHW) | rows

    def _outputs(self, pixels_NCHW: Tensor) -> dict[str, Tensor]:
        """Return the outputs (N, ...) of the part, on the CPU."""
        if self.table == "features":
            with plugin_errors(self.model, self.table, "forward"):
                return {"features": self.model.vision_encoder(pixels_NCHW).cpu()}
        with plugin_errors(self.model, self.table, "posterior"):
            mean, std = self.model.image_decoder.posterior(pixels_NCHW)
        return {"mean": mean.cpu()} if std is None else {"mean": mean.cpu(), "std": std.cpu()}


def preprocess(method: Preprocess, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Return the pixels, and the extras of an image decoder, by the names they have in a table; (N, ...)."""
    result = method(pictures)
    pixels, extras = result if isinstance(result, tuple) else (result, {})
    return {PIXELS: pixels, **{EXTRAS + name: extras[name] for name in extras}}
