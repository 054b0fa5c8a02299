"""Saving: a model becomes a checkpoint folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dreamkit.checkpoints.components import component_records
from dreamkit.checkpoints.entries import entries, must_be_held
from dreamkit.checkpoints.manifest import Manifest, adapter_file, weights_file
from dreamkit.distributed import barrier, is_main, whole
from dreamkit.errors import CheckpointError
from dreamkit.model.adapters import is_adapter, write_adapter
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders
from dreamkit.storage.sources import fingerprint


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
    for entry in entries(model):
        own = must_be_held(entry, model.sources)
        if own or entry.tensor.requires_grad or entry.names & model.changed:
            unlike |= set() if own else {entry.part}
            tensor = whole(entry.tensor)
            if is_main():
                # A copy: safetensors refuses tensors that share storage, such as views of one larger buffer.
                copy = tensor.clone(memory_format=torch.contiguous_format)
                group = adapters if is_adapter(entry.keys[0]) else held
                group.setdefault(entry.part, {})[entry.keys[0]] = copy
    if is_main():
        Manifest.refuse_to_replace(folder)
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
            format=Manifest.FORMAT,
            dreamkit=version("dreamkit-core"),
            recipe=model.recipe.to_dict(),
            components=component_records(model.recipe, registry or Registry.load()),
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
