"""The tensors of a model and their names in checkpoint files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamkit.distributed import is_main, local
from dreamkit.model.adapters import is_adapter, stored_name
from dreamkit.model.model import DreamModel
from dreamkit.parts.quantized import QuantizedLinear, quantized_layers


@dataclass
class Entry:
    """A tensor of a model: its part, its names in the model, and its keys in the part's checkpoint file.

    The `tensor` of a quantized `layer` has the shape and type of restored weights, takes no memory, and is 0.
    """

    part: str
    tensor: Tensor
    names: set[str]
    keys: list[str]
    is_new_row: bool
    layer: QuantizedLinear | None = None

    def values(self) -> Tensor:
        """Return the values to save, detached; they share the model's memory.

        Weights of a quantized layer are restored on the CPU, in the one process that writes them.
        """
        if self.layer is None or not is_main():
            return self.tensor.detach()
        return self.layer.restored(self.tensor.dtype).cpu()

    def copy(self, values: Tensor) -> None:
        """Copy `values`, of this process's slice, into the model; a quantized layer packs them."""
        if self.layer is None:
            local(self.tensor).copy_(values)
        else:
            self.layer.load(values)


def entries(model: DreamModel) -> list[Entry]:
    """Return each distinct tensor once; a tied tensor has several names."""
    new_rows = {id(row) for row in model.language_model.added_token_parameters()}
    entries: dict[int, Entry] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        part, _, inside = name.partition(".")
        key = stored_name(inside) or part
        entry = entries.setdefault(id(tensor), Entry(part, tensor, set(), [], id(tensor) in new_rows))
        entry.names.add(name)
        entry.keys.append(key)
    return [*entries.values(), *_quantized_entries(model)]


def _quantized_entries(model: DreamModel) -> Iterator[Entry]:
    """Yield an entry for the weights of each quantized layer, which are not in the state dict."""
    for name, layer in quantized_layers(model):
        part, _, inside = f"{name}.weight".partition(".")
        weight = nn.Parameter(torch.zeros(()).expand(layer.shape), requires_grad=False)
        yield Entry(part, weight, {f"{name}.weight"}, [stored_name(inside)], False, layer)


def needs_saving(entry: Entry, sources: Mapping[str, object]) -> bool:
    """Return True if no source has this tensor; `sources` are those of the parts."""
    from_source = sources.get(entry.part) is not None and isinstance(entry.tensor, nn.Parameter)
    return not from_source or is_adapter(entry.keys[0]) or entry.is_new_row
