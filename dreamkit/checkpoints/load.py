"""Loading: a checkpoint becomes a model, or gives its weights to one. All of it, or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.compare import compare_adapters, compare_source, compare_tokens
from dreamkit.checkpoints.components import component_sections
from dreamkit.checkpoints.entries import Entry, entries, must_be_held
from dreamkit.checkpoints.manifest import Manifest, adapter_file, weights_file
from dreamkit.errors import CheckpointError, PluginError
from dreamkit.model.adapters import is_adapter, names_in_part, stored_name
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import PARTS
from dreamkit.registry.registry import Registry

MOST_SHOWN = 10  # tensors named in one error


@dataclass
class PartReport:
    """How many tensors of a part came from the checkpoint, from its source, from nowhere, and were newly made."""

    loaded: int = 0
    from_source: int = 0
    missing: int = 0
    fresh: int = 0


@dataclass
class LoadReport:
    """What a load did, part by part; rich prints it as a table."""

    folder: Path
    parts: dict[str, PartReport] = field(default_factory=dict)

    def __rich__(self) -> Table:
        table = Table("part", "loaded", "from source", "missing", "fresh", box=None, pad_edge=False)
        table.title = f"tensors of {self.folder}"
        for name, part in self.parts.items():
            table.add_row(name, *map(str, (part.loaded, part.from_source, part.missing, part.fresh)))
        return table


def load_checkpoint(folder: Path | str, registry: Registry | None = None) -> tuple[DreamModel, LoadReport]:
    """Builds the model that a checkpoint describes and gives it the weights it holds.

    Raises:
        CheckpointError: damaged, too new, written with components that are not installed, standing on a source that
            is gone or has changed, or holding other tensors than the model has.
    """
    folder = Path(folder).absolute()
    manifest = Manifest.read(folder)
    registry = registry or Registry.load()
    for key, component in manifest.components.items():
        kind, name = component["kind"], component["name"]
        try:
            registry.get(kind, name)
        except PluginError as error:
            raise CheckpointError(
                f"{folder}: its {key} is the {kind} '{name}' of {component['distribution']} {component['version']}, "
                f"which is needed to load it; install that. {error}"
            ) from error
    for part, source in manifest.sources.items():
        compare_source(folder, part, source, source["name"])
    where = str(folder / Manifest.FILE)
    recipe = recipe_from_dict(manifest.recipe, registry, where=where)
    if getattr(recipe.model.language_model.config, "tokenizer", None) is not None:
        # It was named apart from the weights; the checkpoint has a copy of its own.
        own = recipe.to_dict()
        own["model"]["language_model"]["tokenizer"] = str(folder / "tokenizer")
        recipe = recipe_from_dict(own, registry, where=where)
    model = build(fit(recipe, registry))
    for part in model.sources.keys() - manifest.sources.keys():
        model.sources[part] = None
    compare_tokens(folder, manifest, model)
    return model, _copy(model, folder, manifest)


def load_weights(model: DreamModel, folder: Path | str) -> LoadReport:
    """Starts `model`, built from a recipe of its own, from the weights of a checkpoint, such as the stage before.

    Both must have the same parts, of the same shapes, on the same sources. Adapters that only the model has stay as
    they were made and are reported as fresh.

    Raises:
        CheckpointError: damaged, or not fitting the model.
    """
    folder = Path(folder).absolute()
    manifest = Manifest.read(folder)
    ours = {} if model.recipe is None else {key: name for key, _, name in component_sections(model.recipe)}
    for key in PARTS:
        here = ours.get(key, "none")
        there = manifest.components[key]["name"] if key in manifest.components else "none"
        if here != there:
            raise CheckpointError(
                f"{folder}: its {key} is '{there}', but the recipe's is '{here}'; "
                "use the same part, or start from another checkpoint"
            )
    compare_tokens(folder, manifest, model)
    for part, source in manifest.sources.items():
        name = model.sources.get(part)
        if name is None:
            raise CheckpointError(
                f"{folder}: its {part} stands on '{source['name']}', but the recipe builds it from a config; "
                f"set model.{part}.pretrained to it"
            )
        compare_source(folder, part, source, name)
    if model.recipe is not None:
        compare_adapters(folder, manifest, model.recipe)
    return _copy(model, folder, manifest, adapters_may_be_fresh=True)


def _copy(
    model: DreamModel, folder: Path, manifest: Manifest, *, adapters_may_be_fresh: bool = False
) -> LoadReport:
    """Copies what the checkpoint holds into the model: all of it, or nothing."""
    read = _held(model, folder, manifest)
    report = LoadReport(folder)
    copies: list[tuple[Entry, Tensor]] = []
    problems: list[str] = []
    for entry in entries(model):
        part, key = report.parts.setdefault(entry.part, PartReport()), entry.keys[0]
        # What is tied here may have been apart when it was written, and its name another.
        found = [read[entry.part].pop(k) for k in entry.keys if k in read.get(entry.part, ())]
        if found and found[0].shape != entry.tensor.shape:
            shapes = f"{tuple(found[0].shape)} in the checkpoint, {tuple(entry.tensor.shape)} in the model"
            problems.append(f"{entry.part}: {key}: {shapes}")
        elif found:
            part.loaded += 1
            copies.append((entry, found[0]))
        elif not must_be_held(entry, manifest.sources):
            part.from_source += 1
        elif adapters_may_be_fresh and is_adapter(key):
            part.fresh += 1
        else:
            part.missing += 1
            problems.append(f"{entry.part}: {key}: missing from the checkpoint")
    left = [(part_name, key) for part_name, tensors in read.items() for key in tensors]
    problems += [f"{part_name}: {key}: in the checkpoint, but not in the model" for part_name, key in left]
    if problems:
        adapters = sorted({part_name for part_name, key in left if is_adapter(key)})
        remedy = (
            f" (it has adapters on {', '.join(adapters)}: give model.adapters the same, or fold them into its weights "
            "by `dreamkit merge-adapters`)"
            if adapters
            else ""
        )
        shown = "\n".join(f"  {problem}" for problem in problems[:MOST_SHOWN])
        more = f"\n  and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        raise CheckpointError(f"{folder} does not fit the model{remedy}:\n{shown}{more}")
    with torch.no_grad():
        for entry, tensor in copies:
            entry.tensor.copy_(tensor)
            model.changed |= entry.names
    return report


def _held(model: DreamModel, folder: Path, manifest: Manifest) -> dict[str, dict[str, Tensor]]:
    """The tensors that a checkpoint holds, by part and by what `entries` calls them."""
    read = {part: _read(folder / weights_file(part)) for part in manifest.parts}
    # format 1 called an adapter's tensors as peft's modules do
    held = {part: {stored_name(name): tensor for name, tensor in read[part].items()} for part in read}
    for part in manifest.adapters:
        tensors = names_in_part(model.parts()[part], _read(folder / adapter_file(part)))
        held.setdefault(part, {}).update(tensors)
    return held


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is as it was written, but holds no tensors: {error}") from error
