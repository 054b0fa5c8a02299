"""Documents of a recipe in blocks, read with `train.workers` processes; no batch crosses a block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from torch.utils.data import ConcatDataset, DataLoader, Dataset as TorchDataset

from dreamkit.data.dataset import Dataset
from dreamkit.data.document_reads import read_document
from dreamkit.data.reading_threads import in_threads
from dreamkit.data.skipped import Skipped, split_place
from dreamkit.data.workers import WorkerStart
from dreamkit.document import Document
from dreamkit.errors import DocumentError, StorageError
from dreamkit.recipe.sections import TrainSection

DOCUMENTS: Final = 8  # read at a time

Content = TypeVar("Content")


class ReadDocument(NamedTuple):
    """A document, or the record of one that cannot be used, with its number among those of all data sets."""

    number: int
    document: Document | Skipped


class Block(NamedTuple):
    """Numbers of documents that one process reads; `number` is that of the block."""

    number: int
    documents: Sequence[int]


class BlockReader:
    """A reader of the documents of all data sets.

    Images have the size that training decodes them in, with at least `least_side` pixels a side.
    """

    def __init__(self, datasets: Sequence[Dataset], train: TrainSection, least_side: int | None) -> None:
        self.documents = Documents(
            [Readable(number, each, train.on_error, least_side) for number, each in enumerate(datasets)]
        )
        self.workers = train.workers

    def __len__(self) -> int:
        return len(self.documents)

    def read(
        self, blocks: Iterable[Block], collate: Callable[[Sequence[ReadDocument]], Content]
    ) -> Iterator[tuple[Block, bool, Content]]:
        """Read blocks of at least one document; yield each batch with its block, and True if it is the last one there.

        The next blocks are taken from `blocks` while batches of earlier ones wait. `collate` runs in the processes that
        read.

        Raises:
            DocumentError: a document cannot be used, and the recipe's policy is to stop.
        """
        expected: deque[tuple[Block, bool]] = deque()

        def batches() -> Iterator[Sequence[int]]:
            for block in blocks:
                starts = range(0, len(block.documents), DOCUMENTS)
                for start in starts:
                    expected.append((block, start == starts[-1]))
                    yield block.documents[start : start + DOCUMENTS]

        loader: Any = DataLoader(
            cast(Any, self.documents),
            batch_sampler=cast(Any, batches()),
            num_workers=self.workers,
            collate_fn=collate,
            worker_init_fn=WorkerStart(),
        )
        for content in loader:
            yield (*expected.popleft(), content)


class Readable(TorchDataset["Document | Skipped"]):
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


class Documents(ConcatDataset["Document | Skipped"]):
    """The documents of all data sets; those of a batch are read at once in threads, if the data sets allow it."""

    def __getitems__(self, numbers: Sequence[int]) -> list[ReadDocument]:
        reads = [partial(self.__getitem__, number) for number in numbers]
        if not all(cast(Readable, each).dataset.is_thread_safe for each in self.datasets):
            return [ReadDocument(number, read()) for number, read in zip(numbers, reads, strict=True)]
        with in_threads(reads) as results:
            return [ReadDocument(number, result()) for number, result in zip(numbers, results, strict=True)]
