"""The tensors of a model and their names in checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dreamkit.model.adapters import is_adapter, stored_name
from dreamkit.model.model import DreamModel


@dataclass
class Entry:
    """A tensor of a model: its part, its names in the model, and its keys in the part's checkpoint file."""

    part: str
    tensor: Tensor
    names: set[str]
    keys: list[str]
    is_new_row: bool


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
    return list(entries.values())


def needs_saving(entry: Entry, sources: Mapping[str, object]) -> bool:
    """Return True if no source has this tensor; `sources` are those of the parts."""
    from_source = sources.get(entry.part) is not None and isinstance(entry.tensor, nn.Parameter)
    return not from_source or is_adapter(entry.keys[0]) or entry.is_new_row
