"""Computation of the tables: reads the documents of a recipe's data and computes each of their images once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from PIL.Image import Image as Picture
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import ConcatDataset, DataLoader, Dataset as TorchDataset

from dreamkit.cache.manifest import PART_OF, Table
from dreamkit.cache.model_check import plugin_errors, table_module
from dreamkit.cache.read import EXTRAS
from dreamkit.cache.shards import KEY_BYTES, ShardWriter, picture_key
from dreamkit.cache.skipped_file import SkippedFile
from dreamkit.data.dataset import Dataset
from dreamkit.data.document_reads import read_document
from dreamkit.data.reading_threads import in_threads
from dreamkit.data.sequence import blank_picture
from dreamkit.data.shrinking import least_side
from dreamkit.data.skipped import Skipped, is_beyond, split_place
from dreamkit.data.workers import in_shared_memory, original_errors
from dreamkit.document import Document
from dreamkit.errors import CacheError, DocumentError, StorageError
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import full_float64
from dreamkit.recipe.sections import TrainSection

DOCUMENTS, PICTURES = 8, 32  # read at a time; computed at a time
PIXELS = "pixels"  # the preprocessed tensor that a part computes from; other tensors are stored as they are

Preprocess: TypeAlias = Callable[[Sequence[Picture]], Any]  # of a vision encoder or an image decoder


class CachingProgress(NamedTuple):
    """Progress through the data: documents read, documents in all, and distinct images in those read."""

    documents: int
    total: int
    images: int


OnProgress: TypeAlias = Callable[[CachingProgress], None]


class TableBuilder:
    """A table while it is computed: images wait until they fill a batch.

    The part is moved to `device`. The row of the blank image is computed at once, so a part that fails does so early.

    Raises:
        CacheError: an error in the code of the part.
    """

    def __init__(self, table: Table, model: DreamModel, device: torch.device, writer: ShardWriter) -> None:
        self.table, self.model, self.device, self.writer = table, model, device, writer
        self._waiting: dict[bytes, dict[str, Tensor]] = {}
        table_module(model, table).to(device)
        blank = blank_picture()
        with plugin_errors(model, table, "preprocess"):
            inputs = preprocess(self.preprocess, [blank])
        self._blank = picture_key(blank), self._rows(inputs)
        self._keys = {self._blank[0]}

    @property
    def preprocess(self) -> Preprocess:
        return self.model.parts()[PART_OF[self.table]].preprocess  # type: ignore[return-value]

    @property
    def row_bytes(self) -> int:
        return KEY_BYTES + sum(tensor.nbytes for tensor in self._blank[1].values())

    def add(self, keys: Sequence[bytes], inputs: Mapping[str, Tensor]) -> None:
        """Compute the images that are new; `inputs` are their preprocessed tensors (N, ...)."""
        for number, key in enumerate(keys):
            if key in self._keys:
                continue
            self._keys.add(key)
            self._waiting[key] = {name: tensor[number] for name, tensor in inputs.items()}
            if len(self._waiting) == PICTURES:
                self._compute()

    def finish(self) -> bool:
        """Write the remaining rows; return False, without writing any, if the data had no image for this table."""
        if self._keys == {self._blank[0]}:
            return False
        if self._waiting:
            self._compute()
        # completes a batch that has no image to read or to draw
        self.writer.add([self._blank[0]], self._blank[1])
        self.writer.flush()
        return True

    def _compute(self) -> None:
        rows = [*self._waiting.values()]
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self.writer.add([*self._waiting], self._rows(inputs))
        self._waiting = {}

    @torch.no_grad()
    def _rows(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors (N, ...) of the table for preprocessed images."""
        rows = {name: tensor for name, tensor in inputs.items() if name != PIXELS}
        pixels_NCHW = inputs[PIXELS].to(self.device, self.model.dream_queries.dtype)
        with full_float64(pixels_NCHW.dtype == torch.float64):
            return self._outputs(pixels_NCHW) | rows

    def _outputs(self, pixels_NCHW: Tensor) -> dict[str, Tensor]:
        """Return the outputs (N, ...) of the part, on the CPU."""
        if self.table == "features":
            with plugin_errors(self.model, self.table, "forward"):
                return {"features": self.model.vision_encoder(pixels_NCHW).cpu()}
        with plugin_errors(self.model, self.table, "posterior"):
            mean, std = self.model.image_decoder.posterior(pixels_NCHW)
        return {"mean": mean.cpu()} if std is None else {"mean": mean.cpu(), "std": std.cpu()}


@original_errors()
def fill(
    builders: Mapping[Table, TableBuilder],
    datasets: Sequence[Dataset],
    train: TrainSection,
    on_progress: OnProgress,
    skipped: SkippedFile,
) -> None:
    """Read all documents with `train.workers` processes, and compute the tables of their images.

    Images have the size that training decodes them in. Documents that cannot be used, which training skips, too, are
    added to `skipped`.

    Raises:
        DocumentError: a document cannot be used, and the recipe's policy is to stop.
        CacheError: too many documents cannot be used.
        OutputError: the list of skipped documents cannot be written.
    """
    model = next(iter(builders.values())).model
    side = least_side(train, model.vision_encoder.spec, model.image_decoder.spec)
    documents: Any = _Documents(
        [_Readable(number, dataset, train.on_error, side) for number, dataset in enumerate(datasets)]
    )
    reader = _Reader({table: builder.preprocess for table, builder in builders.items()})
    documents_read, images = 0, set[bytes]()
    on_progress(CachingProgress(0, len(documents), 0))
    for batch in DataLoader(documents, DOCUMENTS, num_workers=train.workers, collate_fn=reader):
        for table, (keys, inputs) in batch.tables.items():
            builders[table].add(keys, inputs)
            images.update(keys)
        documents_read += batch.documents
        skipped.add(batch.skipped)
        bad = skipped.summary.documents
        if skipped.first is not None and is_beyond(train.max_skipped, bad, documents_read):
            raise CacheError(
                f"expected at most {train.max_skipped:.2%} bad documents (train.max_skipped), got {bad:,} of "
                f"{documents_read:,}; {skipped.summary.most_common()}; the first is {skipped.first.text}; correct the "
                "data or raise train.max_skipped"
            )
        on_progress(CachingProgress(documents_read, len(documents), len(images)))


def preprocess(method: Preprocess, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Return the pixels, and the extras of an image decoder, by the names they have in a table; (N, ...)."""
    result = method(pictures)
    pixels, extras = result if isinstance(result, tuple) else (result, {})
    return {PIXELS: pixels, **{EXTRAS + name: extras[name] for name in extras}}


class _Readable(TorchDataset["Document | Skipped"]):
    """The documents of a data set, with a record in place of each that cannot be used and may be skipped."""

    def __init__(
        self,
        number: int,
        dataset: Dataset,
        on_error: Literal["skip", "stop"],
        least_side: int | None = None,
    ) -> None:
        self.number = number
        self.dataset = dataset
        self.on_error = on_error
        self.least_side = least_side

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Document | Skipped:
        where = f"data.{self.number} ({type(self.dataset).__name__}): document {index}"
        try:
            return read_document(lambda: self.dataset[index], where, least_side=self.least_side)
        except StorageError:
            raise
        except DocumentError as error:
            if self.on_error == "stop":
                raise
            return Skipped(index, self.number, index, *split_place(str(error)))


class _Documents(ConcatDataset["Document | Skipped"]):
    """The documents of all data sets; those of a batch are read at once in threads, if the data sets allow it."""

    def __getitems__(self, indices: Sequence[int]) -> list[Document | Skipped]:
        reads = [partial(self.__getitem__, index) for index in indices]
        if not all(cast(_Readable, each).dataset.is_thread_safe for each in self.datasets):
            return [read() for read in reads]
        with in_threads(reads) as results:
            return [result() for result in results]


class _ReadBatch(NamedTuple):
    """The number of documents read, and those that cannot be used.

    For each table, keys and preprocessed tensors of the new images.
    """

    documents: int
    skipped: list[Skipped]
    tables: dict[Table, tuple[list[bytes], dict[str, Tensor]]]


@dataclass
class _Reader:
    """The preprocessing of documents' images; a process that reads documents does it once for each image."""

    methods: Mapping[Table, Preprocess]
    keys: dict[Table, set[bytes]] = field(default_factory=dict)

    def __call__(self, items: Sequence[Document | Skipped]) -> _ReadBatch:
        documents = [item for item in items if isinstance(item, Document)]
        skipped = [item for item in items if isinstance(item, Skipped)]
        new: dict[Table, dict[bytes, Picture]] = {table: {} for table in self.methods}
        for image in (image for document in documents for image in document.images):
            key = picture_key(image.picture)
            for table, is_used in (("features", image.read), ("latents", image.draw)):
                if is_used and table in new and key not in self.keys.setdefault(table, set()):
                    new[table][key] = image.picture
        tables = {}
        for table, pictures in new.items():
            self.keys.setdefault(table, set()).update(pictures)
            if pictures:
                tables[table] = [*pictures], preprocess(self.methods[table], [*pictures.values()])
        return tree_map_only(Tensor, in_shared_memory, _ReadBatch(len(items), skipped, tables))
