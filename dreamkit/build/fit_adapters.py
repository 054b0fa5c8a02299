"""Adapters on parts: each goes into layers that are there, and that it can be put into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from torch import nn

from dreamkit.build.fit_record import Fit
from dreamkit.errors import did_you_mean
from dreamkit.recipe.sections import AdapterSection, ModelSection, PartSection

_ADAPTABLE: Final = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fit_adapters(found: Fit, model: ModelSection) -> None:
    seen: set[str] = set()
    trainable = (found.recipe.train.trainable if found.recipe.train else None) or ()
    for index, adapter in enumerate(model.adapters or ()):
        key = f"model.adapters.{index}.target"
        if adapter.target in seen:
            found.problem(key, f"'{adapter.target}' found a second time; a part takes one adapter")
        seen.add(adapter.target)
        section = getattr(model, adapter.target)
        cls = section and found.attempt(
            f"model.{adapter.target}", found.registry.get, adapter.target, section.name
        )
        if cls and getattr(found, adapter.target):
            _fit_modules(found, index, adapter, cls, section)
        if adapter.target in trainable:
            found.problem(
                "train.trainable",
                f"'{adapter.target}' found, but it has an adapter ({found.recipe.place(key)}), beside which its own "
                "weights stay frozen; remove it here, or remove the adapter",
            )


def _fit_modules(found: Fit, index: int, adapter: AdapterSection, cls: Any, section: PartSection) -> None:
    """The layers that an adapter names must be there, and of a type that can be adapted; or the part names them."""
    if adapter.modules is None and cls.adapter_targets:
        return
    key = f"model.adapters.{index}"
    before = len(found.problems)
    outline = found.attempt(key, cls.meta_modules, section.config)
    if len(found.problems) > before:
        return
    if adapter.modules is None:
        if not getattr(outline, "adapter_targets", ()):
            said = f"'{section.name}' names no layers to adapt; list them in 'modules'"
            found.problem(f"{key}.target", said)
        return
    if not adapter.modules:
        found.problem(f"{key}.modules", "an empty list found; name layers, or leave it out")
    root = outline and found.attempt(key, outline.get_submodule, cls.adapter_root)
    for number, message in (
        _invalid_modules(root, adapter.modules, section.name, adapter.rank) if root else ()
    ):
        found.problem(f"{key}.modules.{number}", message)


def _invalid_modules(
    root: nn.Module, modules: Sequence[str], part: str, rank: int
) -> Iterator[tuple[int, str]]:
    """Which of `modules`, by index, are no layers of `root` that an adapter of `rank` can go into, and why not.

    `part` is named.
    """
    from transformers.pytorch_utils import Conv1D  # takes as long to import as torch

    adaptable = (*_ADAPTABLE, Conv1D)
    layers = {name: layer for name, layer in root.named_modules() if name}
    for index, wanted in enumerate(modules):
        named = [layer for name, layer in layers.items() if f".{name}".endswith(f".{wanted}")]
        odd = sorted({type(layer).__name__ for layer in named if not isinstance(layer, adaptable)})
        if not named:
            known = {
                name.rpartition(".")[2]
                for name, layer in layers.items()
                if isinstance(layer, nn.Linear | Conv1D)
            }
            yield index, f"'{part}' has no layer '{wanted}'; {did_you_mean(wanted, known)}"
        elif odd:
            yield index, f"'{wanted}' names a {' and a '.join(odd)}, but a layer of weights is wanted"
        grouped = {getattr(layer, "groups", 1) for layer in named}
        if wrong := sorted(groups for groups in grouped if rank % groups):
            yield (
                index,
                f"'{wanted}' names a convolution of {wrong[-1]} groups, which rank {rank} is no multiple of; "
                f"set rank to {wrong[-1]}, or name other layers",
            )
