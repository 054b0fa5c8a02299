"""Saving of a model as a checkpoint folder, which appears only when complete."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreamkit.checkpoints.components import component_records
from dreamkit.checkpoints.entries import entries, needs_saving
from dreamkit.checkpoints.manifest import Manifest, SourceRecord, adapter_file, weights_file
from dreamkit.distributed import barrier, is_main, whole
from dreamkit.errors import CheckpointError
from dreamkit.model.adapters import is_adapter, write_adapter
from dreamkit.model.model import DreamModel
from dreamkit.recipe.written import as_written
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import atomic_folder, describe_files, partial_folder
from dreamkit.storage.paths import output_folder
from dreamkit.storage.sources import fingerprint
from dreamkit.storage.writing import writing


def save_checkpoint(
    model: DreamModel,
    folder: Path | str,
    *,
    registry: Registry | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` to `folder`, which appears only when complete; a checkpoint in its place is replaced.

    `beside` is called with the unfinished folder and may write more files into it. If several processes train together,
    each must call this function; the first one writes.

    Raises:
        CheckpointError: the model has no recipe, or `folder` holds other files.
        OutputError: `folder` cannot be written, or another command is writing it.
    """
    folder = output_folder(folder)
    if model.recipe is None:
        raise CheckpointError("the model has no recipe to be rebuilt from; set model.recipe")
    with atomic_folder(folder) if is_main() else nullcontext(partial_folder(folder)) as partial:
        if is_main():
            Manifest.refuse_to_replace(folder)
        write_checkpoint(model, partial, registry=registry, beside=beside)
    barrier()


def write_checkpoint(
    model: DreamModel,
    folder: Path,
    *,
    registry: Registry | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` into the empty folder of an unfinished checkpoint; see `save_checkpoint`."""
    assert model.recipe is not None, "the caller checks it"
    weights: dict[str, dict[str, Tensor]] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    changed: set[str] = set()  # parts whose weights differ from their source
    for entry in entries(model):
        is_new = needs_saving(entry, model.sources)
        if is_new or entry.tensor.requires_grad or entry.names & model.changed:
            if not is_new:
                changed.add(entry.part)
            tensor = whole(entry.tensor)
            if is_main():
                # safetensors refuses tensors that share storage, such as views of one larger buffer
                copy = tensor.clone(memory_format=torch.contiguous_format)
                group = adapters if is_adapter(entry.keys[0]) else weights
                group.setdefault(entry.part, {})[entry.keys[0]] = copy
    barrier()  # the main process has created `folder`
    if beside is not None:
        beside(folder)
    barrier()
    if is_main():
        _write(model, folder, weights, adapters, changed, registry or Registry.load())


def _write(
    model: DreamModel,
    folder: Path,
    weights: Mapping[str, dict[str, Tensor]],
    adapters: Mapping[str, dict[str, Tensor]],
    changed: Collection[str],
    registry: Registry,
) -> None:
    """Write gathered tensors, the tokenizer and the manifest; `changed` are parts that differ from their source."""
    assert model.recipe is not None, "the caller checks it"
    sources: dict[str, SourceRecord] = {
        part: {"name": as_written(source), "files": fingerprint(source)}
        for part, source in model.sources.items()
        if source is not None
    }
    for part, tensors in weights.items():
        with writing(file := folder / weights_file(part)):
            save_file(tensors, file)
    for part, tensors in adapters.items():
        source = None if part in changed else model.sources.get(part)
        base = None if source is None else as_written(source)
        with writing(file := folder / adapter_file(part)):
            write_adapter(model.parts()[part], tensors, file, base)
    with writing(folder / "tokenizer"):
        model.language_model.save_tokenizer(folder / "tokenizer")
    Manifest(
        format=Manifest.PORTABLE,
        dreamkit=version("dreamkit-core"),
        recipe=model.recipe.to_dict(),
        components=component_records(model.recipe, registry),
        tokens=dict(model.token_ids),
        sources=sources,
        parts={part: len(tensors) for part, tensors in weights.items()},
        adapters={part: len(tensors) for part, tensors in adapters.items()},
        processes=1,
        files=describe_files(folder),
    ).write(folder)
