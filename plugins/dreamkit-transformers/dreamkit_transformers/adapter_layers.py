"""Layers of a model that an adapter can train, by full name: other layers may share the last part of it."""

from __future__ import annotations

from collections.abc import Set

from torch import nn
from transformers.pytorch_utils import Conv1D


def layers_matching(model: nn.Module, patterns: Set[str]) -> tuple[str, ...]:
    """Return the names of the layers of `model` that accept an adapter and whose `name_pattern` is in `patterns`."""
    return tuple(
        name
        for name, _ in model.named_modules()
        if name_pattern(name) in patterns and accepts_adapter(model, name)
    )


def name_pattern(name: str) -> str:
    """Return a module's name with `*` for each index, the same for all layers of a list."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def accepts_adapter(model: nn.Module, name: str) -> bool:
    """Return True if the module `name` is a linear layer that peft can adapt."""
    parent, _, last = name.rpartition(".")
    # kernels of state space models read this layer's weights directly, so peft refuses to adapt it
    read_by_kernel = last == "out_proj" and any(
        isinstance(sibling, nn.Conv1d) for sibling in model.get_submodule(parent).children()
    )
    return isinstance(model.get_submodule(name), nn.Linear | Conv1D) and not read_by_kernel
