"""The check of a recipe's data: every source is opened, a sample of its documents is read, and all problems listed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.build.fit_record import FAILURES
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.data.batch import Collator
from dreamkit.data.cutting import cut_sequence
from dreamkit.data.dataset import Dataset
from dreamkit.data.document_reads import read_document
from dreamkit.data.samples import run_samples
from dreamkit.data.sequence import Sequence as Tokens, Sequencer
from dreamkit.document import Document, Text
from dreamkit.errors import (
    DocumentError,
    RecipeError,
    RecipeProblem,
    StorageError,
    count,
    describe_error,
    printable,
)
from dreamkit.inspection.data_report import DataReport, Packing, Source
from dreamkit.inspection.held_out import HeldOut, open_held_out
from dreamkit.inspection.problem_text import HELD_OUT
from dreamkit.inspection.run_data import Place, RunData
from dreamkit.inspection.text_loss import first_text, text_loss_note
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

SAMPLES: Final = 100  # documents of each data set
MOST_HELD_OUT: Final = 10_000  # held-out documents of a data set that a sample is compared with
MOST_PROBLEMS: Final = 1000  # of one source; the others are counted
MOST_NAMED: Final = 3  # documents of a note

Progress = Callable[[str, int, int], None]  # documents that were read, how many, and of how many


def check_data(
    recipe: Recipe,
    registry: Registry,
    *,
    samples: int | None = SAMPLES,
    held_out: str | None = None,
    on_progress: Progress = lambda documents, done, total: None,
) -> DataReport:
    """Open every data set of a recipe, and read `samples` documents of each at even distances; None reads all.

    Documents are compared with those of `recipe.held_out`, and of `held_out`: a recipe or a path, as for
    `open_held_out`. No weights are read.
    """
    check = _DataCheck(recipe, registry, samples, on_progress)
    contents = check.read_held_out(held_out)
    sources = check.read_sources(contents)
    packing = check.pack()
    return DataReport(
        sources,
        packing,
        None if contents is None else contents.documents,
        tuple(check.problems),
        (*check.notes, *check.text_notes()),
        dict(check.unlisted),
    )


class _DataCheck:
    """The problems and notes of a recipe's data, collected while it is read."""

    def __init__(
        self, recipe: Recipe, registry: Registry, samples: int | None, on_progress: Progress
    ) -> None:
        self.recipe, self.registry = recipe, registry
        self.samples, self.on_progress = samples, on_progress
        fitted = fit(recipe, registry)
        inputs = open_inputs(
            recipe, registry, with_init=False, with_held_out=True, language=fitted.language_model
        )
        self.datasets = [dataset or self.reopened(number) for number, dataset in enumerate(inputs.datasets)]
        self.held_out = inputs.held_out
        self.notes = list(inputs.notes)
        self.problems = [*fitted.problems, *inputs.problems]
        self.opening_problems = len(self.problems)
        self.unlisted: Counter[str] = Counter()  # problems beyond `MOST_PROBLEMS`, by key
        self.listed: Counter[str] = Counter()
        self.first_texts: list[Text | None] = []  # of the first documents
        self.with_token: dict[str, list[str]] = defaultdict(list)  # names of documents by special token
        self.token_counts: Counter[str] = Counter()
        self.collator: Collator | None = None
        if not fitted.problems:
            try:
                self.collator = build_on_meta(fitted).collator(recipe)
            except RecipeError as error:
                self.problems += error.problems

    def reopened(self, number: int) -> Dataset | None:
        """Return a data set whose first document cannot be read, so that others are listed; None for other problems."""
        section = self.recipe.data[number]
        dataset: Dataset | None = None
        try:
            dataset = self.registry.get("dataset", section.name)(section.config)
            dataset[0]
        except DocumentError:
            return dataset
        except FAILURES:  # its problem is listed
            return None
        return None

    def problem(self, key: str, message: str) -> None:
        """Add a problem of a source, unless it is listed."""
        if any(
            each.key == key and each.message == message for each in self.problems[: self.opening_problems]
        ):
            return
        self.listed[key] += 1
        if self.listed[key] > MOST_PROBLEMS:
            self.unlisted[key] += 1
            return
        where = "command line" if key == HELD_OUT else self.recipe.place(key)
        self.problems.append(RecipeProblem(where, key, message))

    def chosen(self, size: int, most: int | None) -> Sequence[int]:
        """Return up to `most` numbers of documents at even distances."""
        if most is None or most >= size:
            return range(size)
        return [number * size // most for number in range(most)]

    def documents(
        self, key: str, dataset: Dataset, numbers: Sequence[int]
    ) -> Iterator[tuple[int, Document | None]]:
        """Yield documents by number; None for each that cannot be read, which is a problem of `key`.

        A disk or network that fails ends the documents: each one would wait for it again.
        """
        for number in numbers:
            document = None
            try:
                document = read_document(partial(dataset.__getitem__, number), f"document {number}")
            except StorageError as error:
                self.problem(key, f"{error}; no more of its documents were read")
                return
            except DocumentError as error:
                self.problem(key, str(error))
            except Exception as error:  # the code of a plug-in may fail in any way
                self.problem(key, f"document {number}: {describe_error(error)}")
            yield number, document

    def read_held_out(self, name: str | None) -> HeldOut | None:
        """Return the contents of held-out data: the recipe's, and that of `name`; what cannot be read is a problem."""
        named = [] if name is None else self.opened(name)
        keyed = [
            (f"held_out.{number}", each) for number, each in enumerate(self.held_out) if each is not None
        ]
        keyed += [(HELD_OUT, dataset) for dataset in named]
        contents = HeldOut([dataset for _, dataset in keyed])
        for index, (key, dataset) in enumerate(keyed):
            numbers = self.chosen(len(dataset), None if self.samples is None else MOST_HELD_OUT)
            if len(numbers) < len(dataset):
                size = count(f"{len(dataset):,}", "held-out document")
                self.notes.append(f"note: compared with {len(numbers):,} of {size}; --all reads all of them")
            for done, (number, document) in enumerate(self.documents(key, dataset, numbers), 1):
                self.on_progress("held-out documents", done, len(numbers))
                try:
                    if document is not None:
                        contents.add(index, number, document)
                except DocumentError as error:  # an image without a known range
                    self.problem(key, str(error))
        return contents if keyed else None

    def opened(self, name: str) -> Sequence[Dataset]:
        """Return the held-out data sets of `name`; empty if they cannot be opened, which is a problem."""
        try:
            return open_held_out(name, self.recipe, self.registry)
        except RecipeError as error:
            self.problems += error.problems
        except Exception as error:  # the code of a plug-in may fail in any way
            self.problem(HELD_OUT, describe_error(error))
        return ()

    def read_sources(self, contents: HeldOut | None) -> tuple[Source, ...]:
        """Read the sample of each data set; compare it with held-out contents."""
        sources = []
        for index, section in enumerate(self.recipe.data):
            source = Source(f"data.{index}", section.name)
            sources.append(source)
            dataset = self.datasets[index] if index < len(self.datasets) else None
            if dataset is None:
                continue
            source.documents = len(dataset)
            numbers = self.chosen(len(dataset), self.samples)
            for done, (_, document) in enumerate(self.documents(source.key, dataset, numbers), 1):
                self.on_progress(f"documents of {source.key}", done, len(numbers))
                if document is not None:
                    self.add(source, document)
                    self.compare(source, document, contents)
        return tuple(sources)

    def add(self, source: Source, document: Document) -> None:
        """Add a document to the report of its source, with its sequence."""
        source.add_document(document)
        if len(self.first_texts) < SAMPLES:
            self.first_texts.append(first_text(document))
        if self.collator is None:
            return
        sequencer, text = self.collator.sequencer, document.text
        for name in (*sequencer.special_tokens.names(), *sequencer.language_model.spec.reserved_tokens):
            if name in text:
                self.token_counts[name] += 1
                self.with_token[name] += [document.name] * (len(self.with_token[name]) < MOST_NAMED)
        try:
            sequence = self.sequence(source, document, sequencer)
        except DocumentError as error:
            self.problem(source.key, str(error))
            return
        if sequence is not None:
            source.add_sequence(sequence, sequencer.vision_tokens, sequencer.dream_queries)

    def sequence(self, source: Source, document: Document, sequencer: Sequencer) -> Tokens | None:
        """Return the training sequence of a document; None if it is too long and the recipe skips such documents.

        Raises:
            DocumentError: it cannot be trained on.
        """
        policy = self.recipe.train.too_long
        if policy == "stop":
            return sequencer.sequence(document)
        whole = sequencer.whole_sequence(document)
        if len(whole) <= sequencer.max_length:
            return whole
        if not source.too_long:
            source.long_example = f"{document.name} ({count(f'{len(whole):,}', 'token')})"
        source.too_long += 1
        if policy == "skip":
            return None
        shortened = cut_sequence(sequencer, document, whole)
        source.images_cut += len(whole.reads) + len(whole.draws) - len(shortened.reads) - len(shortened.draws)
        return shortened

    def compare(self, source: Source, document: Document, contents: HeldOut | None) -> None:
        """Add a problem if a content of the document is held out, too."""
        try:
            other = None if contents is None else contents.find(document)
        except DocumentError as error:  # an image without a known range
            self.problem(source.key, str(error))
            return
        if other is None:
            return
        source.duplicates += 1
        self.problem(
            source.key, f"{document.name}: the same content is held out, as '{other}'; remove one of the two"
        )

    def pack(self) -> Packing | None:
        """Return the rows of the first batches: of about as many documents as a sample has."""
        datasets = [dataset for dataset in self.datasets if dataset is not None]
        if self.collator is None or not datasets or len(datasets) < len(self.recipe.data):
            return None
        documents = self.recipe.train.update_documents(processes=1)
        samples = run_samples(self.recipe, datasets, self.collator.sequencer, documents)
        run = RunData(self.recipe, samples, self.collator)
        packing, stopped = Packing(), set()
        for update in run.updates(self.samples or SAMPLES):
            if packing.documents and packing.documents + len(update) > (self.samples or SAMPLES):
                break
            try:
                places = [run.place(number).without_pictures() for number in update]
            except StorageError as error:
                self.problem("data", str(error))
                break
            for place in places:
                if place.problem is not None and place.data not in stopped:
                    stopped.add(place.data)
                    self.add_stop(place)
            packing.add(len(update), run.packed(places))
        return packing

    def add_stop(self, place: Place) -> None:
        """Add the problem of a place at which training stops, unless it is that of a document that is listed."""
        key, problem = f"data.{place.data}", place.problem or ""
        if not any(each.key == key and problem.startswith(each.message) for each in self.problems):
            self.problem(key, f"training stops at place {place.number} of the run: {problem}")

    def text_notes(self) -> Iterator[str]:
        """Yield notes about texts with special tokens, and about a tokenizer that loses texts."""
        for name, documents in self.with_token.items():
            number = count(f"{self.token_counts[name]:,}", "document")
            listed = ", ".join(map(printable, documents))
            yield f"note: the special token '{printable(name)}' is plain text in {number}, such as {listed}"
        if self.collator is None:
            return
        loss = text_loss_note(self.collator.sequencer.language_model, self.first_texts)
        if loss is not None:
            yield f"note: {loss}"
