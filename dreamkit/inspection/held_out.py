"""Held-out data: the data sets of a recipe, or a file or folder that a data set reads; and what it shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from dreamkit.data.dataset import Dataset
from dreamkit.document import Document
from dreamkit.errors import DreamkitError, describe_error, printable
from dreamkit.inspection.content_index import ContentIndex
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import DataSection, Recipe
from dreamkit.registry.registry import Registry

RECIPES: Final = (".yaml", ".yml")
READERS: Final = ("pairs", "interleaved", "conversations")  # that are tried for a file or folder


class HeldOut:
    """The contents of held-out documents."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = datasets
        self.documents = 0
        self._index = ContentIndex()
        self._starts = [sum(len(each) for each in datasets[:number]) for number in range(len(datasets))]

    def add(self, dataset: int, number: int, document: Document) -> None:
        """Add document `number` of a data set."""
        self._index.add(self._starts[dataset] + number, document)
        self.documents += 1

    def find(self, document: Document) -> str | None:
        """Return the name of an added document with a content of this one, or None."""
        number = self._index.find(document)
        if number is None:
            return None
        dataset = max(index for index, start in enumerate(self._starts) if start <= number)
        return self.datasets[dataset][number - self._starts[dataset]].name


def open_held_out(name: str, recipe: Recipe, registry: Registry) -> list[Dataset]:
    """Open held-out data: that of the recipe `name`, or a file or folder.

    A file or folder is read as the data sets of `recipe` are, or else by the first data set that can read it.

    Raises:
        DreamkitError: no such recipe or path, a data set that cannot be opened, or a path that no data set reads.
    """
    path = Path(name)
    if path.suffix in RECIPES or not path.exists():
        sections = load_recipe(name, (), registry).data
        if not sections:
            raise DreamkitError(f"the recipe {printable(name)} has no data; name another recipe or a path")
        return [registry.get("dataset", section.name)(section.config) for section in sections]
    reasons = []
    for reader, config in _configs(path, recipe.data, registry):
        try:
            return [registry.get("dataset", reader)(config)]
        except Exception as error:  # the code of a plug-in may fail in any way
            reason = f"as {reader}: {describe_error(error)}"
            if reason not in reasons:
                reasons.append(reason)
    raise DreamkitError(f"no data set can read {printable(name)}; {'; '.join(reasons)}")


def _configs(path: Path, sections: Sequence[DataSection], registry: Registry) -> Iterator[tuple[str, Any]]:
    """Yield names of data sets, with configs that name `path`."""
    for section in sections:
        if any(field.name == "path" for field in fields(section.config)):
            yield section.name, replace(section.config, path=path)
    for reader in READERS:
        yield reader, registry.get("dataset", reader).Config(path=path)
