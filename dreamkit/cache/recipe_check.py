"""Comparison of a cache with a recipe, from its manifest alone: no model is built and no weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dreamkit.build.fit_record import Fit
from dreamkit.cache.manifest import (
    PART_OF,
    CacheManifest,
    DataRecord,
    Identity,
    exclude_table_hint,
    recreate_hint,
)
from dreamkit.data.dataset import Dataset
from dreamkit.data.shrinking import KEY as MARGIN, least_side
from dreamkit.errors import CacheError, RecipeProblem, TrainingError, count, excerpt, printable
from dreamkit.recipe.sections import DataSection, Recipe, plain
from dreamkit.recipe.written import shown_setting
from dreamkit.registry.registry import Registry

KEY: Final = "train.cache"
DECODED_SIDE: Final = f"decoded_side ({MARGIN})"  # of the images whose content is a key of a row
# metadata of a field of `Config` that changes the loss, and no feature or latent
LOSS_ONLY: Final = "loss_only"
IS_TRAINED: Final = "is trained (train.trainable or model.adapters), so its output changes"


def recipe_identity(recipe: Recipe, registry: Registry, table: str, side: int | None) -> dict[str, Any]:
    """Return the part of a table's `Identity` that the recipe determines: component, precision and settings.

    `side` is the least side of decoded images, or None if they are whole; such an identity has no setting for it.
    """
    part = PART_OF[table]
    section = getattr(recipe.model, part)
    component = registry.components(part)[section.name]
    fields = dataclasses.fields(section.config)
    excluded = {"pretrained", *(field.name for field in fields if field.metadata.get(LOSS_ONLY))}
    settings = {name: value for name, value in plain(section.config).items() if name not in excluded}
    return {
        "component": f"{section.name} ({component.origin})",
        "precision": recipe.train.precision,
        "settings": _flatten(settings) | ({} if side is None else {DECODED_SIDE: side}),
    }


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted names, so that a message names the one that differs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def identity_differences(
    part: str, cached: Identity, current: Mapping[str, Any], then: str = "in the cache"
) -> Iterator[str]:
    """Yield a line with both values for each entry of `current` that differs in the cache, or wherever `then` is.

    `current` is an `Identity` or what `recipe_identity` returns: entries that it lacks are not compared. Config files
    that only one side has are ignored, because programs add files to the folder of a model of the hub.
    """

    def line(name: str, before: str, now: str) -> str:
        return f"{part}: {printable(name)}: {before} {then}, {now} now"

    if cached["component"] != current["component"]:
        yield line("component", excerpt(cached["component"]), current["component"])
        return  # the settings of another component are other settings
    if cached["precision"] != current["precision"]:
        yield line("precision", excerpt(cached["precision"]), current["precision"])
    settings = cached["settings"], current["settings"]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        both = [(type(each.get(name)), each.get(name)) if name in each else None for each in settings]
        if both[0] != both[1]:
            yield line(name, *("unset" if each is None else shown_setting(each[1]) for each in both))
    before, now = cached["source_files"], current.get("source_files", {})
    hashes = {name: (before[name], now[name]) for name in sorted(before.keys() & now.keys())}
    if "weights" in current:
        hashes["weights"] = cached["weights"], current["weights"]
    for name, (old, new) in hashes.items():
        if old != new:
            yield line(name, f"sha256 {excerpt(old[:16])}...", f"{new:.16}...")


def mismatch(folder: Path, trained: Sequence[str], different: Sequence[str]) -> str:
    """Return the message about a cache that a run cannot use.

    `trained` are lines about tables of parts that are trained, `different` those about other differences.
    """
    fix = f"; {recreate_hint(folder)}" if different else ""
    return f"{folder} does not fit this training{fix}" + "".join(
        f"\n  {line}" for line in [*trained, *different]
    )


def trained_line(table: str, reason: str) -> str:
    """Return the line of `mismatch` about a table of a part that is trained."""
    return f"{table}: {reason}; freeze it, or {exclude_table_hint(table)}"


def cache_problems(fitted: Fit) -> list[RecipeProblem]:
    """Return the problems of `train.cache` that show without weights. Sections of a draft that are None are skipped."""
    recipe = fitted.recipe
    if not recipe.train or recipe.train.cache is None:
        return []
    folder = Path(recipe.train.cache)
    try:
        manifest = CacheManifest.read(folder)
        manifest.verify(folder, read=False)
    except CacheError as error:
        return [RecipeProblem(recipe.place(KEY), KEY, str(error))]
    trained = [
        trained_line(table, f"{PART_OF[table]} {IS_TRAINED}")
        for table in manifest.tables
        if _is_trained(fitted, table)
    ]
    different = [
        f"{table}: {line}" for table in manifest.tables for line in _differences(fitted, manifest, table)
    ]
    if not trained and not different:
        return []
    return [RecipeProblem(recipe.place(KEY), KEY, mismatch(folder, trained, different))]


def _differences(fitted: Fit, manifest: CacheManifest, table: str) -> Iterator[str]:
    part, record = PART_OF[table], manifest.tables[table]
    current = _current_identity(fitted, table)
    if current is not None:
        yield from identity_differences(part, record["identity"], current)
    # another `pretrained` is no difference in itself, but may have other shapes
    for name, shape in _shapes(fitted, table).items():
        cached = record["tensors"].get(name)
        if cached is not None and cached["shape"] != shape:
            before = excerpt(str(cached["shape"]))
            yield f"{part}: {name}: shape {before} in the cache, {shape} now"


def _current_identity(fitted: Fit, table: str) -> dict[str, Any] | None:
    """Return the `recipe_identity` of a recipe; None if a problem of the recipe, which is listed, leaves it open."""
    recipe, part = fitted.recipe, PART_OF[table]
    section = getattr(recipe.model, part, None)
    if (
        not section
        or section.name not in fitted.registry.components(part)
        or section.config is None
        or recipe.train.precision is None
    ):
        return None
    try:
        side = least_side(recipe.train, fitted.vision_encoder, fitted.image_decoder)
    except TrainingError:
        return None
    return recipe_identity(recipe, fitted.registry, table, side)


def _shapes(fitted: Fit, table: str) -> dict[str, list[int]]:
    """Return the shapes in a row that follow from the specs."""
    vision, decoder = fitted.vision_encoder, fitted.image_decoder
    if table == "features":
        return {"features": [vision.num_tokens, vision.dim]} if vision else {}
    return {"mean": [*decoder.latent_shape((decoder.image_size,) * 2)]} if decoder else {}


def _is_trained(fitted: Fit, table: str) -> bool:
    """Return True if the weights of a table are certain to be trained.

    A decoder may train its network alone; then only the built model shows the answer.
    """
    model, part = fitted.recipe.model, PART_OF[table]
    adapters = getattr(model, "adapters", None) or ()
    if part not in {*(fitted.recipe.train.trainable or ()), *(adapter.target for adapter in adapters)}:
        return False
    if table == "features":
        return True
    cls: Any = fitted.registry.get(part, model.image_decoder.name) if fitted.image_decoder else None
    return cls is not None and cls.posterior_module == ""


def data_records(sections: Sequence[DataSection], datasets: Sequence[Dataset]) -> list[DataRecord]:
    """Return the manifest's records of a recipe's data: one data set for each of its `sections`."""
    return [
        {"name": section.name, "settings": _data_settings(section), "documents": len(dataset)}
        for section, dataset in zip(sections, datasets, strict=True)
    ]


def data_notes(
    folder: Path, manifest: CacheManifest, recipe: Recipe, datasets: Sequence[Dataset | None]
) -> Iterator[str]:
    """Yield a line for each data set of `recipe` that the cache was not written from, or that changed since then.

    All images may be there nevertheless. A data set that is None is not counted.
    """
    for number, (section, dataset) in enumerate(zip(recipe.data, datasets, strict=True)):
        start = f"{folder} may lack images: data.{number} ({section.name})"
        now = _data_settings(section)
        alike = [record for record in manifest.data if record["name"] == section.name]
        same = [record for record in alike if record["settings"] == now]
        if same and dataset is not None and len(dataset) not in [record["documents"] for record in same]:
            before = count(f"{same[0]['documents']:,}", "document")
            yield f"{start} had {before} when the cache was written, and has {len(dataset):,} now"
        elif not same and len(alike) == 1:
            cached = alike[0]["settings"]
            names = [name for name in sorted(cached.keys() | now.keys()) if cached.get(name) != now.get(name)]
            changes = [
                f"{printable(name)}: {shown_setting(cached.get(name))} in the cache, {shown_setting(now.get(name))} now"
                for name in names
            ]
            yield f"{start} has other settings: {'; '.join(changes)}"
        elif not same:
            yield f"{start} is not in the data of the cache"


def cache_notes(recipe: Recipe, datasets: Sequence[Dataset | None]) -> list[str]:
    """Return lines about the cache of a recipe without problems: its tables, then its `data_notes`."""
    if recipe.train.cache is None:
        return []
    folder = Path(recipe.train.cache)
    manifest = CacheManifest.read(folder)
    return [manifest.summary(folder), *data_notes(folder, manifest, recipe, datasets)]


def _data_settings(section: DataSection) -> dict[str, Any]:
    """Return the settings that choose the documents; those of their order and of indexes do not."""
    others = ("name", "weight", "shuffle", "index")
    return {name: value for name, value in plain(section).items() if name not in others}
