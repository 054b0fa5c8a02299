"""The tensors that a checkpoint of a model saves, and the files that have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dreamkit.checkpoints.entries import entries, needs_saving
from dreamkit.checkpoints.manifest import adapter_file, slice_file, weights_file
from dreamkit.checkpoints.saved_tensors import write_places
from dreamkit.distributed import is_first_replica, is_main, local, local_region, rank, world_size
from dreamkit.model.adapters import adapter_tensors, is_adapter
from dreamkit.model.model import DreamModel
from dreamkit.recipe.written import as_written
from dreamkit.storage.tensor_writer import tensor_bytes


@dataclass(frozen=True)
class TensorFile:
    """A file to write: its name in the checkpoint's folder, its tensors by their names in it, and its metadata."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None = None

    def copied(self) -> TensorFile:
        """Return the file with copies of the tensors on the CPU, which no training changes."""
        copies = {
            name: torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=copies)


@dataclass
class Content:
    """The tensors to save of a model, by part and key.

    Attributes:
        weights: those of each part, except its adapter.
        adapters: those of each part's adapter.
        changed: the parts whose weights differ from their source.
    """

    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def base(self, model: DreamModel, part: str) -> str | None:
        """Return the source of an adapted part's weights, as a checkpoint names it; None if they differ from it."""
        source = None if part in self.changed else model.sources.get(part)
        return None if source is None else as_written(source)


def saved_content(model: DreamModel) -> Content:
    """Return the tensors of `model` that a checkpoint saves; they share its memory, but for restored weights."""
    content = Content()
    for entry in entries(model):
        is_new = needs_saving(entry, model.sources)
        if is_new or entry.tensor.requires_grad or entry.names & model.changed:
            if not is_new:
                content.changed.add(entry.part)
            group = content.adapters if is_adapter(entry.keys[0]) else content.weights
            group.setdefault(entry.part, {})[entry.keys[0]] = entry.values()
    return content


def portable_files(model: DreamModel, content: Content) -> list[TensorFile]:
    """Return the files of a checkpoint whose parts and adapters have files of their own. Sharded tensors stay so."""
    files = [TensorFile(weights_file(part), tensors) for part, tensors in content.weights.items()]
    for part, tensors in content.adapters.items():
        folder = adapter_file(part).rpartition("/")[0]
        adapter = adapter_tensors(model.parts()[part], tensors, content.base(model, part))
        files += [TensorFile(f"{folder}/{name}", *each) for name, each in adapter.items()]
    return files


def slices_of_model(content: Content) -> TensorFile:
    """Return the file with this process's slices of all saved tensors, by part and key."""
    tensors = {
        f"{part}.{key}": tensor
        for group in (content.weights, content.adapters)
        for part, each in group.items()
        for key, tensor in each.items()
    }
    return slices(slice_file(rank(), world_size()), tensors)


def slices(name: str, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Return a file with this process's slices of `tensors`. The first of several replicas writes a slice."""
    # the main process has the first slice of each, also of an empty tensor
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if is_first_replica(tensor) and (local(tensor).numel() or is_main())
    }
    places = {name: (local_region(tensor).offsets, tuple(tensor.shape)) for name, tensor in own.items()}
    return TensorFile(name, {name: local(tensor) for name, tensor in own.items()}, write_places(places))


def whole_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size in files of whole tensors, or of all slices of sharded ones."""
    return sum(map(tensor_bytes, tensors))
