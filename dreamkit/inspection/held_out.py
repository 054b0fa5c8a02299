"""Held-out data: the data sets of a recipe, or a file or folder that a data set reads; and what it shares."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from dreamkit.data.dataset import Dataset
from dreamkit.document import Document
from dreamkit.errors import DreamkitError, PluginError, describe_error, did_you_mean, printable
from dreamkit.inspection.content_index import ContentIndex
from dreamkit.recipe.data_paths import data_readers
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import DataSection, Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage.paths import shown_path
from dreamkit.storage.urls import Location, Url, location

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

    A file or folder is read as the data sets of `recipe` are, or else by the first data set that can read it. A pattern
    of files may name several, and a URL objects in a bucket.

    Raises:
        DreamkitError: no such recipe or path, a data set that cannot be opened, or a path that no data set reads.
    """
    path = Path(name)
    place = location(name)
    if name in registry.recipes() or (path.suffix in RECIPES and path.is_file()):
        sections = load_recipe(name, (), registry).data
        if not sections:
            raise DreamkitError(f"the recipe {printable(name)} has no data; name another recipe or a path")
        return [registry.get("dataset", section.name)(section.config) for section in sections]
    if not isinstance(place, Url) and not path.exists() and not data_readers(path):
        raise DreamkitError(
            f"expected a recipe, or a file or folder of data, got '{shown_path(name)}', which does not exist; "
            f"{_nearest(path, registry.recipes())}"
        )
    reasons = []
    for reader, config in _configs(place, recipe.data, registry):
        try:
            return [registry.get("dataset", reader)(config)]
        except Exception as error:  # the code of a plug-in may fail in any way
            reason = f"as {reader}: {describe_error(error)}"
            if reason not in reasons:
                reasons.append(reason)
    raise DreamkitError(f"no data set can read {printable(name)}; {'; '.join(reasons)}")


def _nearest(path: Path, recipes: Iterable[str]) -> str:
    """Return the nearest name of a recipe, or of a file or folder beside `path`."""
    try:
        beside = [str(path.with_name(name)) for name in os.listdir(path.parent)]
    except (OSError, ValueError):  # no such folder; a path without a name
        beside = []
    near = difflib.get_close_matches(str(path), beside, n=1)
    return did_you_mean(str(path), near or recipes)


def _configs(
    path: Location, sections: Sequence[DataSection], registry: Registry
) -> Iterator[tuple[str, Any]]:
    """Yield names of data sets, with configs that name `path`."""
    for section in sections:
        if any(field.name == "path" for field in fields(section.config)):
            yield section.name, replace(section.config, path=path)
    for reader in dict.fromkeys((*data_readers(path), *READERS)):
        try:
            config = registry.get("dataset", reader).Config(path=path)
        except (PluginError, TypeError):  # it is not installed, or needs other keys, too
            continue
        yield reader, config
