"""What data a cache was made of, and where that of a recipe is other. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreamkit.cache.manifest import CacheManifest, DataRecord
from dreamkit.data.dataset import Dataset
from dreamkit.recipe.sections import DataSection, Recipe, plain
from dreamkit.registry.registry import Registry


def data_records(sections: Sequence[DataSection], datasets: Sequence[Dataset]) -> list[DataRecord]:
    """What a manifest says of the data of a recipe; `datasets` are those of its `sections`."""
    return [
        {"name": section.name, "settings": _settings(section), "documents": len(dataset)}
        for section, dataset in zip(sections, datasets, strict=True)
    ]


def other_data(
    folder: Path, manifest: CacheManifest, recipe: Recipe, datasets: Sequence[Dataset | None]
) -> Iterator[str]:
    """A line for each data set of `recipe` that the cache in `folder` was not made of, or that has grown since.

    The pictures may all be there nevertheless. Documents of `datasets` that are None are not counted.
    """
    for number, (section, dataset) in enumerate(zip(recipe.data, datasets, strict=True)):
        at = f"{folder} may lack pictures: data.{number} ({section.name})"
        alike = [record for record in manifest.data if record["name"] == section.name]
        same = [record for record in alike if record["settings"] == _settings(section)]
        if same and dataset is not None and len(dataset) not in [record["documents"] for record in same]:
            yield f"{at} had {same[0]['documents']:,} documents when it was made, and has {len(dataset):,} now"
        elif not same and len(alike) == 1:
            was, now = alike[0]["settings"], _settings(section)
            names = [name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name)]
            changes = [f"{name} was {was.get(name)!r}, and is {now.get(name)!r} now" for name in names]
            yield f"{at} is other than when it was made: {'; '.join(changes)}"
        elif not same:
            yield f"{at} is not of the data that it was made of"


def cache_notes(recipe: Recipe, registry: Registry) -> list[str]:
    """Of a recipe without problems: what its training reads from a cache, and where its data is other."""
    if recipe.train.cache is None:
        return []
    folder = Path(recipe.train.cache)
    manifest = CacheManifest.read(folder)
    datasets = [_opened(registry, section) for section in recipe.data]
    return [manifest.told(folder), *other_data(folder, manifest, recipe, datasets)]


def _opened(registry: Registry, section: DataSection) -> Dataset | None:
    """The data set of a section; None where it cannot be opened here, which training says."""
    try:
        dataset: Dataset = registry.get("dataset", section.name)(section.config)
        len(dataset)
    except Exception:  # the code of a plug-in may fail in any way
        return None
    return dataset


def _settings(section: DataSection) -> dict[str, Any]:
    return {name: value for name, value in plain(section).items() if name not in ("name", "weight")}
