"""The documents of a recipe's training in their order, with the sequences and rows that they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence as Sequences
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.data.batch import Collator
from dreamkit.data.samples import Samples, run_samples
from dreamkit.data.sequence import Sequence, Sequencer
from dreamkit.data.updates import divide
from dreamkit.document import Document
from dreamkit.errors import RecipeError, StorageError, describe_error
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

MOST_PACKED: Final = 128  # documents of one update that are read to show its rows; it may have thousands
PIXEL: Final = Image.new("L", (1, 1))


@dataclass(frozen=True)
class Place:
    """A place of a run: its document, and its sequence or the reason why it has none.

    Attributes:
        number: the place.
        data: number of its data set.
        document: the document, or its substitute if it was skipped; None if it cannot be read.
        sequence: the training sequence; None if training would stop here.
        problem: the reason why it would; None for a document with a sequence.
    """

    number: int
    data: int
    document: Document | None = None
    sequence: Sequence | None = None
    problem: str | None = None

    def without_pictures(self) -> Place:
        """Return the place without its document, and with one pixel for each image of its sequence: for its rows."""
        sequence = self.sequence
        if sequence is not None:
            reads, draws = ([(at, PIXEL) for at, _ in images] for images in (sequence.reads, sequence.draws))
            sequence = replace(sequence, reads=reads, draws=draws)
        return replace(self, document=None, sequence=sequence)


@dataclass(frozen=True)
class Row:
    """A row of a batch: the numbers of tokens of its sequences, each with its place; None is that of a dummy."""

    tokens: tuple[tuple[int | None, int], ...]

    @property
    def filled(self) -> int:
        """Number of tokens that are not padding."""
        return sum(length for _, length in self.tokens)


@dataclass(frozen=True)
class PackedBatch:
    """The rows of a batch, each `width` tokens wide."""

    rows: tuple[Row, ...]
    width: int

    @property
    def filled(self) -> int:
        """Number of tokens that are not padding."""
        return sum(row.filled for row in self.rows)


@dataclass(frozen=True)
class RunData:
    """The data of a training run on one device.

    Attributes:
        recipe: the recipe of the run.
        samples: the sequences of the run by place.
        collator: the function that makes batches of them.
    """

    recipe: Recipe
    samples: Samples
    collator: Collator

    @property
    def sequencer(self) -> Sequencer:
        """The converter of documents to sequences."""
        return self.collator.sequencer

    def place(self, number: int) -> Place:
        """Return a place with its document and sequence, as training has them; why it has none is its `problem`.

        Raises:
            StorageError: a disk or network fails.
        """
        data, _ = self.samples.position(number)
        document = None
        try:
            sequence = self.samples[number]
            return Place(number, data, self.samples.document(number, len(sequence.skipped)), sequence)
        except StorageError:
            raise
        except Exception as error:  # the code of a plug-in may fail in any way
            problem = describe_error(error)
        with suppress(Exception):
            document = self.samples.document(number)
        return Place(number, data, document, problem=problem)

    def updates(self, documents: int) -> Iterator[range]:
        """Yield the places of each update that has one of the first `documents` places.

        Of an update with more than `MOST_PACKED` documents, only so many are read.
        """
        size = self.recipe.train.update_documents(processes=1)
        for start in range(0, min(documents, len(self.samples)), size):
            yield range(start, start + min(size, MOST_PACKED))

    def packed(self, places: Sequences[Place]) -> list[PackedBatch]:
        """Return the rows of each forward pass of an update of these places; none if no document can be trained on."""
        usable = [place.sequence for place in places if place.sequence is not None]
        return [self._packed(part) for part in divide(usable, self.collator, self.recipe.train)]

    def _packed(self, usable: Sequences[Sequence]) -> PackedBatch:
        """Return the rows of the forward pass of these sequences."""
        sequences, rows, _ = self.collator.packed(usable)
        numbers = [sequence.place for sequence in usable] + [None] * (len(sequences) - len(usable))
        made = tuple(Row(tuple((numbers[index], len(sequences[index])) for index in row)) for row in rows)
        return PackedBatch(made, max(row.filled for row in made))


def open_run(recipe: Recipe, registry: Registry) -> RunData:
    """Open the data of a recipe, and build its model without weights.

    Raises:
        RecipeError: every problem of the model and the data.
    """
    fitted = fit(recipe, registry)
    inputs = open_inputs(recipe, registry, with_init=False, language=fitted.language_model)
    if problems := [*fitted.problems, *inputs.problems]:
        raise RecipeError(problems)
    collator = build_on_meta(fitted).collator(recipe)
    documents = recipe.train.update_documents(processes=1)
    samples = run_samples(recipe, inputs.require_datasets(), collator.sequencer, documents)
    return RunData(recipe, samples, collator)
