"""Loading of checkpoints, as new models or into models; a load that fails changes nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from dreamkit.build.build import build, build_as_stored
from dreamkit.build.fit import fit
from dreamkit.checkpoints.compare import compare_adapters, compare_components, compare_source, compare_tokens
from dreamkit.checkpoints.entries import Entry, entries, needs_saving
from dreamkit.checkpoints.manifest import Manifest, adapter_file, weights_file
from dreamkit.checkpoints.saved_tensors import SavedTensor, read_slices
from dreamkit.distributed import is_sharded, local, local_region, of_all, together_if_sharded
from dreamkit.errors import CheckpointError, PluginError, excerpt, first_lines
from dreamkit.model.adapters import is_adapter, names_in_part, stored_name
from dreamkit.model.model import DreamModel
from dreamkit.model.placing import float_type
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.recipe.source_keys import stored_source
from dreamkit.registry.registry import Registry
from dreamkit.storage.paths import shown_path
from dreamkit.storage.tensor_files import LONGEST_NAME, read_tensors, tensor_problem

MOST_LISTED = 10  # tensors in one error message


@dataclass
class PartReport:
    """Numbers of a part's tensors: loaded from the checkpoint, from its source, missing, newly initialised."""

    loaded: int = 0
    from_source: int = 0
    missing: int = 0
    fresh: int = 0


@dataclass
class LoadReport:
    """The report of a load, part by part; rich prints it as a table.

    The table leaves out missing tensors: a load that lacks one fails, and its error names them.
    """

    folder: Path
    parts: dict[str, PartReport] = field(default_factory=dict)

    def __rich__(self) -> Table:
        table = Table("part", "loaded", "from source", "initialised", box=None, pad_edge=False)
        table.title = f"tensors of {self.folder}"
        for name, part in self.parts.items():
            table.add_row(name, *map(str, (part.loaded, part.from_source, part.fresh)))
        return table


def load_checkpoint(
    folder: Path | str,
    registry: Registry | None = None,
    *,
    quantize: bool = True,
    dtype: str | torch.dtype | None = None,
) -> tuple[DreamModel, LoadReport]:
    """Build the model of a checkpoint and load its weights. Without `quantize`, no part of it is quantized.

    `dtype` is `float32` or `bfloat16`; None is float32, or float64 with that precision in the recipe. The model equals
    one that is cast after it was loaded, and takes less memory meanwhile: most weights are cast as they are read.

    Raises:
        DreamkitError: an unknown `dtype`.
        CheckpointError: a damaged checkpoint or a newer format, a component that is not installed, a source that is
            missing or has changed, or other tensors than the model has.
    """
    floats = None if dtype is None else float_type(dtype)
    model, manifest = build_saved(folder, registry, quantize=quantize, dtype=floats)
    return model, copy_tensors(model, folder, manifest)


def build_saved(
    folder: Path | str,
    registry: Registry | None = None,
    *,
    scratch: Path | None = None,
    quantize: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[DreamModel, Manifest]:
    """Build the model of a checkpoint without its weights; return it with the manifest, for `copy_tensors`.

    With `scratch`, the model is one of `build_as_stored`, else one of `build` in `dtype`. Without `quantize`, no part
    of it is quantized.

    Raises:
        CheckpointError: as `load_checkpoint`, except for the tensors.
    """
    folder = Path(folder).absolute()
    manifest = Manifest.read(folder)
    registry = registry or Registry.load()
    for key, component in manifest.components.items():
        try:
            registry.get(component["kind"], component["name"])
        except PluginError as error:
            kind, name = excerpt(component["kind"]), excerpt(component["name"])
            distribution, version = excerpt(component["distribution"]), excerpt(component["version"])
            raise CheckpointError(
                f"{folder}: its {key} is the {kind} '{name}' of {distribution} {version}, "
                f"which is needed to load it; install that. {error}"
            ) from error
    for part, source in manifest.sources.items():
        compare_source(folder, part, source, stored_source(source["name"]))
    where = str(folder / Manifest.FILE)
    recipe = recipe_from_dict(manifest.recipe, registry, where=where)
    recipe = recipe if quantize else _unquantized(recipe)
    fitted = fit(_with_own_tokenizer(recipe, folder, registry), registry)
    model = build(fitted, dtype) if scratch is None else build_as_stored(fitted, scratch)
    if getattr(recipe.model.language_model.config, "tokenizer", None) is None:
        model.recipe = recipe
    for part in model.sources.keys() - manifest.sources.keys():
        model.sources[part] = None
    compare_tokens(folder, manifest, model)
    return model, manifest


def _unquantized(recipe: Recipe) -> Recipe:
    sections = {part: replace(getattr(recipe.model, part), quantize=None) for part in WITH_SOURCE}
    return replace(recipe, model=replace(recipe.model, **sections))


def _with_own_tokenizer(recipe: Recipe, folder: Path, registry: Registry) -> Recipe:
    """Return the recipe with the checkpoint's copy of the tokenizer, which has what the model was trained with."""
    if not hasattr(recipe.model.language_model.config, "tokenizer"):
        return recipe
    plain = recipe.to_dict()
    plain["model"]["language_model"]["tokenizer"] = str(folder / "tokenizer")
    return recipe_from_dict(plain, registry, where=str(folder / Manifest.FILE))


def load_weights(
    model: DreamModel, folder: Path | str, *, parts: Collection[str] | None = None
) -> LoadReport:
    """Load the weights of a checkpoint, such as the stage before, into `model`, which has a recipe of its own.

    Both need the same parts, of the same shapes, with the same sources. Adapters that only the model has keep their
    initial values and are reported as fresh. With `parts`, only the tensors of these are compared and copied. If the
    model is sharded, every process must call this function: each reads and checks its own slices, and a problem of one
    is an error of all.

    Raises:
        CheckpointError: a damaged checkpoint, or one that does not fit the model.
    """
    folder = Path(folder).absolute()
    with together_if_sharded(model):
        manifest = Manifest.read(folder)
        compare_components(folder, manifest, model.recipe)
        compare_tokens(folder, manifest, model)
        for part, source in manifest.sources.items():
            name = model.sources.get(part)
            if name is None:
                raise CheckpointError(
                    f"{folder}: the source of its {part} is '{shown_path(source['name'])}', but the recipe builds it "
                    f"from a config; set model.{part}.pretrained to this source"
                )
            compare_source(folder, part, source, name)
        if model.recipe is not None:
            compare_adapters(folder, manifest, model.recipe)
    return copy_tensors(model, folder, manifest, adapters_may_be_fresh=True, parts=parts)


def copy_tensors(
    model: DreamModel,
    folder: Path | str,
    manifest: Manifest,
    *,
    adapters_may_be_fresh: bool = False,
    parts: Collection[str] | None = None,
) -> LoadReport:
    """Copy the tensors of a checkpoint with this `manifest` into the model; change nothing if they do not fit.

    With `parts`, only the tensors of these are compared and copied.

    Of a sharded tensor, each process reads and checks its own slice. Then every process must call this function, and a
    problem of one is an error of all.

    Raises:
        CheckpointError: the tensors are others than the model has, or cannot replace them.
    """
    folder = Path(folder).absolute()
    with together_if_sharded(model):
        saved = _saved_tensors(model, folder, manifest)
    report = LoadReport(folder)
    copies: list[tuple[Entry, SavedTensor]] = []
    problems: list[str] = []
    if parts is not None:
        saved = {name: tensors for name, tensors in saved.items() if name in parts}
    for entry in entries(model):
        if parts is not None and entry.part not in parts:
            continue
        part, key = report.parts.setdefault(entry.part, PartReport()), entry.keys[0]
        # a tied tensor may be saved under any of its names, or under several
        tensors = [saved[entry.part].pop(k) for k in entry.keys if k in saved.get(entry.part, ())]
        if tensors and tensors[0].shape != entry.tensor.shape:
            stored = excerpt(str(tensors[0].shape))
            shapes = f"{stored} in the checkpoint, {tuple(entry.tensor.shape)} in the model"
            problems.append(f"{entry.part}: {key}: {shapes}")
        elif tensors and (problem := _problem(tensors[0], entry.tensor)):
            problems.append(f"{entry.part}: {key}: {problem}")
        elif tensors:
            part.loaded += 1
            copies.append((entry, tensors[0]))
        elif not needs_saving(entry, manifest.sources):
            part.from_source += 1
        elif adapters_may_be_fresh and is_adapter(key):
            part.fresh += 1
        else:
            part.missing += 1
            problems.append(f"{entry.part}: {key}: missing from the checkpoint")
    unused = [(part_name, key) for part_name, tensors in saved.items() for key in tensors]
    problems += [
        f"{part_name}: {excerpt(key, LONGEST_NAME)}: in the checkpoint, but not in the model"
        for part_name, key in unused
    ]
    if is_sharded(model):
        problems = of_all(problems)
    if problems:
        adapters = sorted({part_name for part_name, key in unused if is_adapter(key)})
        hint = (
            f" (it has adapters on {', '.join(adapters)}: use the same model.adapters, or merge them into its weights "
            "with `dreamkit merge-adapters`)"
            if adapters
            else ""
        )
        lines = first_lines(problems, MOST_LISTED)
        raise CheckpointError("\n  ".join([f"{folder} does not fit the model{hint}:", *lines]))
    with torch.no_grad():
        for entry, tensor in copies:
            entry.copy(tensor.read(local_region(entry.tensor)))
            model.changed |= entry.names
    return report


def _problem(saved: SavedTensor, target: Tensor) -> str | None:
    """Return why the saved values of this process's slice of `target` cannot replace it, or None."""
    return tensor_problem(saved.read(local_region(target)), local(target))


def _saved_tensors(model: DreamModel, folder: Path, manifest: Manifest) -> dict[str, dict[str, SavedTensor]]:
    """Read the tensors of a checkpoint, by part and by their keys in `Entry`."""
    saved: dict[str, dict[str, SavedTensor]] = {}
    if manifest.is_sliced:
        for name, tensor in read_slices(folder / file for file in manifest.slice_files).items():
            part, _, key = name.partition(".")
            saved.setdefault(part, {})[key] = tensor
    else:
        for part in manifest.parts:
            # format 1 used the names in peft's modules for an adapter's tensors
            read = read_tensors(folder / weights_file(part), CheckpointError)
            saved[part] = {stored_name(name): SavedTensor.whole(tensor) for name, tensor in read.items()}
        for part in manifest.adapters:
            read = names_in_part(
                model.parts()[part], read_tensors(folder / adapter_file(part), CheckpointError)
            )
            tensors = {name: SavedTensor.whole(tensor) for name, tensor in read.items()}
            saved.setdefault(part, {}).update(tensors)
    # every file is open now, so a folder that is still the verified one had its files
    try:
        is_unchanged = Manifest.read(folder, verify=False) == manifest
    except CheckpointError:
        is_unchanged = False
    if not is_unchanged:
        raise CheckpointError(f"{folder}: it was replaced or removed while it was loaded; load it again")
    return saved
