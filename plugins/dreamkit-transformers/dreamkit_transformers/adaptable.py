"""Which layers of a model an adapter goes into, by their full names: others may end in the same."""

from __future__ import annotations

from collections.abc import Set

from torch import nn
from transformers.pytorch_utils import Conv1D


def adaptable(model: nn.Module, patterns: Set[str]) -> tuple[str, ...]:
    """The names of linear layers that are of one of these patterns."""
    return tuple(
        name for name, _ in model.named_modules() if pattern(name) in patterns and takes_adapter(model, name)
    )


def pattern(name: str) -> str:
    """A module's name, which is the same for all of a list's."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def takes_adapter(model: nn.Module, name: str) -> bool:
    parent, _, last = name.rpartition(".")
    # kernels of state space models read the weights of this one, for which peft refuses it
    read_by_kernel = last == "out_proj" and any(
        isinstance(sibling, nn.Conv1d) for sibling in model.get_submodule(parent).children()
    )
    return isinstance(model.get_submodule(name), nn.Linear | Conv1D) and not read_by_kernel
