"""The training sequences of a run, by their place in it: what the processes that read data compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence as Sequences
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, Protocol

from torch.utils.data import Dataset as TorchDataset

from dreamkit.data.cutting import cut_sequence
from dreamkit.data.dataset import Dataset
from dreamkit.data.document_reads import read_document
from dreamkit.data.mixture import run_mixture
from dreamkit.data.reading_threads import in_threads
from dreamkit.data.seeds import choices, stream_seed
from dreamkit.data.sequence import Sequence, Sequencer
from dreamkit.data.skipped import Skipped, split_place, summarize
from dreamkit.document import Document
from dreamkit.errors import DocumentError, StorageError, count
from dreamkit.recipe.sections import Recipe, TrainSection

MAX_ATTEMPTS: Final = 100  # documents tried for one place


@dataclass(frozen=True)
class Policy:
    """The decisions about documents that cannot be used as they are.

    Attributes:
        on_error: `skip` takes another document of the same set in place of a bad one; `stop` raises its error.
        too_long: `cut` leaves out the end of a document that is longer than a row, `skip` takes another document.
    """

    on_error: Literal["skip", "stop"] = "skip"
    too_long: Literal["cut", "skip", "stop"] = "cut"

    @classmethod
    def of(cls, train: TrainSection) -> Policy:
        """Return the policy of a recipe."""
        return cls(train.on_error, train.too_long)


class Order(Protocol):
    """The documents at the places of a run, such as a `Mixture`."""

    @property
    def key(self) -> str:
        """Key of the data sets in a recipe."""

    @property
    def data_sets(self) -> Sequences[Dataset]:
        """The data sets."""

    @property
    def seed(self) -> int:
        """Seed of the random choices of the data sets."""

    def __len__(self) -> int: ...

    def place(self, place: int, /) -> tuple[int, int]:
        """Return the number of the data set at `place`, and the index of the document in it."""


class Samples(TorchDataset[Sequence]):
    """The sequence of the document at each place of an order, or of its substitute: a function of the place alone.

    `least_side` is that of the function `least_side`: JPEG images are decoded smaller.
    """

    def __init__(
        self,
        order: Order,
        sequencer: Sequencer,
        policy: Policy | None = None,
        *,
        least_side: int | None = None,
    ) -> None:
        self.order = order
        self.sequencer = sequencer
        self.policy = Policy() if policy is None else policy
        self.least_side = least_side

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Sequence:
        """Return the sequence at `place`, with the documents that were skipped for it.

        Raises:
            DocumentError: the document is bad or too long, and the policy is to stop. None of `MAX_ATTEMPTS`
                documents can be used.
            StorageError: a disk or network fails, also when read again.
        """
        return self._usable(place, partial(self.document, place))

    def __getitems__(self, places: Sequences[int]) -> list[Sequence]:
        """Return the sequences at several places, as `__getitem__` does; torch calls this for a batch.

        The documents are read at once in threads, those of data sets that allow it. Substitutes of bad ones are read
        after these.
        """
        reads = {place: self._read(place) for place in places}
        safe = [place for place in reads if self._allows_threads(place)] if len(reads) > 1 else []
        with in_threads([reads[place] for place in safe]) as results:
            reads |= zip(safe, results, strict=True)
            return [self._usable(place, reads[place]) for place in places]

    def _usable(self, place: int, first: Callable[[], Document]) -> Sequence:
        """Return the sequence at `place`, where `first` reads the document and others are its substitutes."""
        skipped: list[Skipped] = []
        for attempt in range(min(self._size(place), MAX_ATTEMPTS)):
            try:
                sequence = self._sequence(self.document(place, attempt) if attempt else first())
            except StorageError:
                raise
            except DocumentError as error:
                skipped.append(self._skipped(error, place, attempt))
            else:
                return replace(sequence, place=place, skipped=tuple(skipped))
        tried = f"{self.order.key}.{skipped[-1].data}: none of {count(len(skipped), 'document')}"
        raise DocumentError(
            f"{tried} for one place can be used: {summarize(skipped)}; the last reason: {skipped[-1].reason}"
        )

    def position(self, place: int, attempt: int = 0) -> tuple[int, int]:
        """Return the number of the data set for `place`, and the index of the document in it.

        After `attempt` bad documents, it is another one of the same set: a function of the seed and these two numbers.
        """
        number, index = self.order.place(place)
        if attempt:
            size = self._size(place)
            stride = 1 + stream_seed(self.order.seed, place, "substitute") % size
            while math.gcd(stride, size) > 1:  # else some documents would never be tried
                stride += 1
            index = (index + attempt * stride) % size
        return number, index

    def document(self, place: int, attempt: int = 0) -> Document:
        """Return the document at this position, with the random choices of its data set for this place.

        While a disk or network fails, the document is read again after some seconds.

        Raises:
            DocumentError: the document cannot be read, or one of its images cannot be used.
            StorageError: the disk or network still fails.
        """
        return self._read(place, attempt)()

    def _read(self, place: int, attempt: int = 0) -> Callable[[], Document]:
        """Return the function that reads the document at this position, in any thread."""
        number, index = self.position(place, attempt)
        dataset = self.order.data_sets[number]
        return lambda: read_document(
            lambda: dataset.sample(index, choices(self.order.seed, place)),
            f"{self.order.key}.{number} ({type(dataset).__name__}): document {index}",
            least_side=self.least_side,
        )

    def _allows_threads(self, place: int) -> bool:
        number, _ = self.order.place(place)
        return self.order.data_sets[number].is_thread_safe

    def _size(self, place: int) -> int:
        """Return the number of documents in the data set for `place`."""
        number, _ = self.order.place(place)
        return len(self.order.data_sets[number])

    def _sequence(self, document: Document) -> Sequence:
        """Return the training sequence of a document, cut if it is too long and the policy is to cut.

        Raises:
            DocumentError: it has nothing to train on.
            _TooLongError: it is too long, and the policy is another one.
        """
        if self.policy.too_long == "cut":
            return cut_sequence(self.sequencer, document)
        sequence = self.sequencer.whole_sequence(document)
        try:
            return self.sequencer.require_length(sequence)
        except DocumentError as error:
            raise _TooLongError(str(error)) from error

    def _skipped(self, error: DocumentError, place: int, attempt: int) -> Skipped:
        """Return the record of a document that the policy skips.

        Raises:
            DocumentError: the policy is to stop.
        """
        is_long = isinstance(error, _TooLongError)
        if is_long and self.policy.too_long == "stop":
            raise DocumentError(f"{error}; or set train.too_long to cut or skip") from error
        if not is_long and self.policy.on_error == "stop":
            raise DocumentError(f"{error}; set train.on_error=skip to skip bad documents") from error
        data, index = self.position(place, attempt)
        return Skipped(place, data, index, *split_place(str(error)), is_long)


def run_samples(
    recipe: Recipe,
    data_sets: Sequences[Dataset],
    sequencer: Sequencer,
    global_batch: int,
    *,
    least_side: int | None = None,
) -> Samples:
    """Return the sequences of a whole run; each update has the next `global_batch`."""
    mixture = run_mixture(recipe, data_sets, global_batch)
    return Samples(mixture, sequencer, Policy.of(recipe.train), least_side=least_side)


class _TooLongError(DocumentError):
    """A document that can be used, were it not too long."""
