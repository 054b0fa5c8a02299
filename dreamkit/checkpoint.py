"""Checkpoints: a folder that holds whatever of a model cannot be read again from the sources its recipe names.

    dreamkit.json            the manifest (`dreamkit.manifest`)
    tokenizer/               in the Hugging Face format, added tokens included
    <part>.safetensors       one a part, and `dream_queries.safetensors`; none for a part with nothing to hold
    adapters/<part>/         the adapter of a part, as `dreamkit.adapters` writes it

A part without a source (built from `config`, imported, or a projector) is held whole. Of a part with one, the file
holds what was ever trained, rows of added tokens, and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamkit import folders
from dreamkit.adapters import in_part, is_adapter, spelled, write_adapter
from dreamkit.build import build
from dreamkit.distributed import barrier, is_main, whole
from dreamkit.errors import CheckpointError, PluginError, SourceError
from dreamkit.manifest import (
    FORMAT,
    MANIFEST,
    ComponentRecord,
    Manifest,
    SourceRecord,
    adapter_file,
    refuse_to_replace,
    weights_file,
)
from dreamkit.model import DreamModel
from dreamkit.plugins import Registry
from dreamkit.recipe import Recipe
from dreamkit.sources import fingerprint

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


def save_checkpoint(
    model: DreamModel,
    folder: Path | str,
    *,
    registry: Registry | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Writes `model` to `folder`, whole or not at all; a checkpoint that is there already is replaced.

    `beside` may write more files into the folder it is given. Where several processes train together, each of them
    must make this call; the first one writes.

    Raises:
        CheckpointError: the model was built without a recipe, or `folder` holds something else.
    """
    folder = Path(folder).absolute()
    if model.recipe is None:
        raise CheckpointError(
            "this model was built without a recipe, so nothing can rebuild it; set model.recipe"
        )
    held: dict[str, dict[str, Tensor]] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    unlike: set[str] = set()  # parts whose source is not what their adapters were trained on
    for entry in _entries(model):
        own = _must_be_held(entry, model.sources)
        if own or entry.tensor.requires_grad or entry.names & model.changed:
            unlike |= set() if own else {entry.part}
            tensor = whole(entry.tensor)
            if is_main():
                # A copy: safetensors refuses tensors that share storage, such as views of one larger buffer.
                copy = tensor.clone(memory_format=torch.contiguous_format)
                group = adapters if is_adapter(entry.keys[0]) else held
                group.setdefault(entry.part, {})[entry.keys[0]] = copy
    if is_main():
        refuse_to_replace(folder)
        folders.begin(folder)
    barrier()
    partial = folders.partial_folder(folder)
    if beside is not None:
        beside(partial)
    barrier()
    if is_main():
        for part, tensors in held.items():
            save_file(tensors, partial / weights_file(part))
        for part, tensors in adapters.items():
            base = None if part in unlike else model.sources.get(part)
            write_adapter(model.parts()[part], tensors, partial / adapter_file(part), base)
        model.language_model.save_tokenizer(partial / "tokenizer")
        Manifest(
            format=FORMAT,
            dreamkit=version("dreamkit"),
            recipe=model.recipe.to_dict(),
            components=_components(model.recipe, registry or Registry.load()),
            tokens=dict(model.token_ids),
            sources={
                part: {"name": source, "files": fingerprint(source)}
                for part, source in model.sources.items()
                if source is not None
            },
            parts={part: len(tensors) for part, tensors in held.items()},
            adapters={part: len(tensors) for part, tensors in adapters.items()},
            files=folders.describe_files(partial),
        ).write(partial)
        folders.commit(folder)
    barrier()


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
        _compare_source(folder, part, source, source["name"])
    where = str(folder / MANIFEST)
    recipe = Recipe.from_dict(manifest.recipe, registry, where=where)
    if getattr(recipe.model.language_model.config, "tokenizer", None) is not None:
        # It was named apart from the weights; the checkpoint has a copy of its own.
        own = recipe.to_dict()
        own["model"]["language_model"]["tokenizer"] = str(folder / "tokenizer")
        recipe = Recipe.from_dict(own, registry, where=where)
    model = build(recipe, registry)
    for part in model.sources.keys() - manifest.sources.keys():
        model.sources[part] = None
    _compare_tokens(folder, manifest, model)
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
    ours = {} if model.recipe is None else {key: name for key, _, name in _sections(model.recipe)}
    for key in model.PARTS:
        here = ours.get(key, "none")
        there = manifest.components[key]["name"] if key in manifest.components else "none"
        if here != there:
            raise CheckpointError(
                f"{folder}: its {key} is '{there}', but the recipe's is '{here}'; "
                "use the same part, or start from another checkpoint"
            )
    _compare_tokens(folder, manifest, model)
    for part, source in manifest.sources.items():
        name = model.sources.get(part)
        if name is None:
            raise CheckpointError(
                f"{folder}: its {part} stands on '{source['name']}', but the recipe builds it from a config; "
                f"set model.{part}.pretrained to it"
            )
        _compare_source(folder, part, source, name)
    if model.recipe is not None:
        _compare_adapters(folder, manifest, model.recipe)
    return _copy(model, folder, manifest, adapters_may_be_fresh=True)


@dataclass
class _Entry:
    """A distinct tensor of a model: its part, its names in the model, and how a file spells these inside the part."""

    part: str
    tensor: Tensor
    names: set[str]
    keys: list[str]
    is_new_row: bool


def _entries(model: DreamModel) -> list[_Entry]:
    """Every distinct tensor once; one that is tied has several names."""
    new_rows = {id(row) for row in model.language_model.new_token_parameters()}
    entries: dict[int, _Entry] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        part, _, inside = name.partition(".")
        key = spelled(inside) or part
        entry = entries.setdefault(id(tensor), _Entry(part, tensor, set(), [], id(tensor) in new_rows))
        entry.names.add(name)
        entry.keys.append(key)
    return list(entries.values())


def _must_be_held(entry: _Entry, sources: Mapping[str, object]) -> bool:
    """Whether no source gives this tensor; `sources` are those of the parts."""
    from_source = sources.get(entry.part) is not None and isinstance(entry.tensor, nn.Parameter)
    return not from_source or is_adapter(entry.keys[0]) or entry.is_new_row


def _copy(
    model: DreamModel, folder: Path, manifest: Manifest, *, adapters_may_be_fresh: bool = False
) -> LoadReport:
    """Copies what the checkpoint holds into the model: all of it, or nothing."""
    read = _held(model, folder, manifest)
    report = LoadReport(folder)
    copies: list[tuple[_Entry, Tensor]] = []
    problems: list[str] = []
    for entry in _entries(model):
        part, key = report.parts.setdefault(entry.part, PartReport()), entry.keys[0]
        # What is tied here may have been apart when it was written, and its name another.
        found = [read[entry.part].pop(k) for k in entry.keys if k in read.get(entry.part, ())]
        if found and found[0].shape != entry.tensor.shape:
            shapes = f"{tuple(found[0].shape)} in the checkpoint, {tuple(entry.tensor.shape)} in the model"
            problems.append(f"{entry.part}: {key}: {shapes}")
        elif found:
            part.loaded += 1
            copies.append((entry, found[0]))
        elif not _must_be_held(entry, manifest.sources):
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
    """The tensors that a checkpoint holds, by part and by what `_entries` calls them."""
    read = {part: _read(folder / weights_file(part)) for part in manifest.parts}
    # format 1 called an adapter's tensors as peft's modules do
    held = {part: {spelled(name): tensor for name, tensor in read[part].items()} for part in read}
    for part in manifest.adapters:
        tensors = in_part(model.parts()[part], _read(folder / adapter_file(part)))
        held.setdefault(part, {}).update(tensors)
    return held


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is as it was written, but holds no tensors: {error}") from error


def _sections(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(key in the recipe, kind, component name) of everything a recipe asks plug-ins for."""
    for key in DreamModel.PARTS:
        section = getattr(recipe.model, key)
        if section is not None:
            yield key, "projector" if key.endswith("_projector") else key, section.name
    for number, data in enumerate(recipe.data):
        yield f"data.{number}", "dataset", data.name


def _components(recipe: Recipe, registry: Registry) -> dict[str, ComponentRecord]:
    components: dict[str, ComponentRecord] = {}
    for key, kind, name in _sections(recipe):
        registered = registry.components(kind)[name]
        components[key] = {
            "kind": kind,
            "name": name,
            "distribution": registered.distribution,
            "version": registered.version,
        }
    return components


def _compare_tokens(folder: Path, manifest: Manifest, model: DreamModel) -> None:
    if manifest.tokens != model.token_ids:
        raise CheckpointError(
            f"{folder}: its special tokens are {manifest.tokens}, but the model's are {model.token_ids}; "
            "give model.special_tokens the same names, and model.language_model the same tokenizer"
        )


def _compare_adapters(folder: Path, manifest: Manifest, recipe: Recipe) -> None:
    """Compares the settings of adapters, some of which their tensors do not tell."""
    ours, theirs = (
        {adapter["target"]: adapter for adapter in sections["model"]["adapters"]}
        for sections in (recipe.to_dict(), manifest.recipe)
    )
    for target in ours.keys() & theirs.keys():
        for key in ("rank", "alpha", "modules", "use_dora", "use_rslora"):
            here, there = ours[target][key], theirs[target][key]
            if here != there:
                raise CheckpointError(
                    f"{folder}: its adapter of {target} has {key} {there}, but the recipe's has {here}, with which its "
                    "weights would not fit, or count otherwise; give both the same"
                )


def _compare_source(folder: Path, part: str, source: SourceRecord, name: str) -> None:
    """Compares the files of `name` as they are now with those that a part of the checkpoint stands on."""
    try:
        now = fingerprint(name)
    except SourceError as error:
        raise CheckpointError(
            f"{folder}: its {part} stands on '{name}', which cannot be read: {error}"
        ) from error
    then = source["files"]
    differing = sorted(file for file in now.keys() | then.keys() if now.get(file) != then.get(file))
    if differing:
        raise CheckpointError(
            f"{folder}: its {part} stands on '{source['name']}' as it was when the checkpoint was written, but in "
            f"'{name}' these differ now: {', '.join(differing)}; restore them, or train again"
        )
