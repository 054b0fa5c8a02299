"""The inputs of a training: its data sets, those that are held out, and the checkpoint that it starts from.

`dreamkit check` prints their problems as notes. Commands that train or cache refuse them before they read any weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from dreamkit.build.fit_record import Fit
from dreamkit.checkpoints.compare import compare_adapters, compare_components
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.data.dataset import Dataset
from dreamkit.document import Document
from dreamkit.errors import DocumentError, RecipeError, RecipeProblem, StorageError, article, count
from dreamkit.parts.specs import LanguageSpec
from dreamkit.recipe.sections import DataSection, HeldOutSection, Recipe
from dreamkit.registry.registry import Registry

TRIED: Final = 100  # documents of a data set, until one can be read


@dataclass(frozen=True)
class Inputs:
    """The open data sets of a recipe, and the problems of its data and `init`.

    Attributes:
        datasets: a data set for each section of `recipe.data`; None for one with a problem.
        held_out: a data set for each section of `recipe.held_out`; None for one with a problem.
        problems: why the recipe cannot be trained with these inputs.
        bad_documents: lines about first documents that training skips.
    """

    datasets: tuple[Dataset | None, ...]
    held_out: tuple[Dataset | None, ...]
    problems: tuple[RecipeProblem, ...]
    bad_documents: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Lines about data that the data sets or the training do not read."""
        opened = [dataset for dataset in (*self.datasets, *self.held_out) if dataset is not None]
        return [*(note for dataset in opened for note in dataset.notes), *self.bad_documents]

    def require_datasets(self) -> list[Dataset]:
        """Return the data sets of `recipe.data`.

        Raises:
            RecipeError: an input has a problem; the message lists all of them.
        """
        if self.problems:
            raise RecipeError(self.problems)
        return [dataset for dataset in self.datasets if dataset is not None]

    def require_held_out(self) -> list[Dataset]:
        """Return the data sets of `recipe.held_out`; raise as `require_datasets` does."""
        self.require_datasets()
        return [dataset for dataset in self.held_out if dataset is not None]


def open_inputs(
    recipe: Recipe,
    registry: Registry,
    datasets: Sequence[Dataset] | None = None,
    held_out: Sequence[Dataset] | None = None,
    *,
    with_init: bool = True,
    with_held_out: bool = False,
    language: LanguageSpec | None = None,
) -> Inputs:
    """Open the data sets of a recipe with the first document of each, and compare `recipe.init` with its manifest.

    If training skips bad documents, the first one that can be read counts. It must be among the first `TRIED`.
    Held-out data sets are opened only `with_held_out`. `datasets` and `held_out` replace the data sets of the recipe. A
    conversation is a problem if the language model of the spec `language` refuses it. No weights are read. The code of
    a plug-in may fail in any way: each failure is a problem.
    """
    record = Fit(recipe, registry)
    if with_init and recipe.init is not None:
        record.attempt("init", _check_init, Path(recipe.init), recipe)
    if not recipe.data:
        record.problem("data", "no training data: name at least one data set")
    opened = {
        "data": _open_all("data", recipe.data, datasets, record, language),
        "held_out": _open_all("held_out", recipe.held_out, held_out, record, language)
        if with_held_out
        else [],
    }
    sets = {key: tuple(None if each is None else each.dataset for each in opened[key]) for key in opened}
    bad = [
        f"{key}.{number}: bad documents are skipped in {use}; the first document is one: {each.bad}"
        for key, use in (("data", "training"), ("held_out", "evaluations"))
        for number, each in enumerate(opened[key])
        if each is not None and each.bad is not None
    ]
    return Inputs(sets["data"], sets["held_out"], tuple(record.problems), tuple(bad))


def _open_all(
    key: str,
    sections: Sequence[DataSection | HeldOutSection],
    replacements: Sequence[Dataset] | None,
    record: Fit,
    language: LanguageSpec | None,
) -> list[_Opened | None]:
    """Open the data set of each section at `key`, or its replacement; None for one with a problem."""
    if replacements is not None and len(replacements) != len(sections):
        expected = count(len(sections), "data set")
        record.problem(key, f"expected {expected}, one for each section, got {len(replacements)}")
        return []
    on_error, refusal = record.recipe.train.on_error, language and language.conversation_problem
    opened: list[_Opened | None] = []
    for number, section in enumerate(sections):
        replacement = None if replacements is None else replacements[number]
        each = record.attempt(f"{key}.{number}", _open, section, record.registry, replacement, on_error)
        if each is not None and refusal and each.first.is_conversation:
            record.problem(
                f"{key}.{number}", f"expected documents without roles, got a conversation; {refusal}"
            )
        opened.append(each)
    return opened


def _check_init(folder: Path, recipe: Recipe) -> None:
    """Compare the sizes of a checkpoint's files with its manifest, and its parts with a recipe.

    Raises:
        CheckpointError: a damaged checkpoint, or one of other parts.
    """
    manifest = Manifest.read(folder, verify=False)
    manifest.verify(folder, read=False)
    compare_components(folder, manifest, recipe)
    compare_adapters(folder, manifest, recipe)


class _Opened(NamedTuple):
    """A data set, its first document that can be read, and the error of the very first one, or None."""

    dataset: Dataset
    first: Document
    bad: DocumentError | None


def _open(
    section: DataSection | HeldOutSection,
    registry: Registry,
    replacement: Dataset | None,
    on_error: Literal["skip", "stop"],
) -> _Opened:
    """Return the data set of a section, or its replacement, with its first document.

    Raises:
        DocumentError: it has no documents, or none of the first can be read, or the first one is not a document.
    """
    dataset: Dataset = (
        replacement if replacement is not None else registry.get("dataset", section.name)(section.config)
    )
    if len(dataset) == 0:
        raise DocumentError("no documents; add some or remove the data set")
    bad: DocumentError | None = None
    tried = min(len(dataset), 1 if on_error == "stop" else TRIED)
    for index in range(tried):
        try:
            first = dataset[index]
            break
        except StorageError:
            raise
        except DocumentError as error:
            bad = bad or error
    else:
        assert bad is not None, "a document was tried"
        raise (
            DocumentError(f"{bad}; none of the first {count(tried, 'document')} can be read")
            if tried > 1
            else bad
        )
    if not isinstance(first, Document):
        kind = type(first).__name__
        raise DocumentError(
            f"expected a Document from {type(dataset).__name__}, got {article(kind)} {kind}; fix its plug-in"
        )
    return _Opened(dataset, first, bad)
