"""Check of adapters: each goes into layers that exist and that LoRA supports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from torch import nn

from dreamkit.build.fit_record import Fit
from dreamkit.errors import count, did_you_mean
from dreamkit.recipe.sections import AdapterSection, ModelSection, PartSection

_ADAPTABLE: Final = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fit_adapters(fit: Fit, model: ModelSection) -> None:
    adapted: set[str] = set()
    trainable = (fit.recipe.train.trainable if fit.recipe.train else None) or ()
    for index, adapter in enumerate(model.adapters or ()):
        key = f"model.adapters.{index}.target"
        if adapter.target in adapted:
            fit.problem(key, f"expected one adapter for each part, got a second one for '{adapter.target}'")
        adapted.add(adapter.target)
        section = getattr(model, adapter.target)
        cls = section and fit.attempt(
            f"model.{adapter.target}", fit.registry.get, adapter.target, section.name
        )
        if cls and getattr(fit, adapter.target):
            _fit_modules(fit, index, adapter, cls, section)
        if adapter.target in trainable:
            fit.problem(
                "train.trainable",
                f"'{adapter.target}' has an adapter ({fit.recipe.place(key)}), so its own weights stay frozen; "
                "remove it here or remove the adapter",
            )


def _fit_modules(fit: Fit, index: int, adapter: AdapterSection, cls: Any, section: PartSection) -> None:
    """Check the layers that an adapter names, or that the part names some if the adapter names none."""
    if adapter.modules is None and cls.adapter_targets:
        return
    key = f"model.adapters.{index}"
    before = len(fit.problems)
    part = fit.attempt(key, cls.meta_modules, section.config)
    if len(fit.problems) > before:
        return
    if adapter.modules is None:
        if not getattr(part, "adapter_targets", ()):
            fit.problem(
                f"{key}.target", f"'{section.name}' has no default layers to adapt; list them in 'modules'"
            )
        return
    if not adapter.modules:
        fit.problem(
            f"{key}.modules", "expected names of layers, got an empty list; name layers or leave it out"
        )
    root = part and fit.attempt(key, part.get_submodule, cls.adapter_root)
    for number, message in (
        _invalid_modules(root, adapter.modules, section.name, adapter.rank) if root else ()
    ):
        fit.problem(f"{key}.modules.{number}", message)


def _invalid_modules(
    root: nn.Module, modules: Sequence[str], part: str, rank: int
) -> Iterator[tuple[int, str]]:
    """Yield index and error message of each of `modules` that no adapter of `rank` can adapt in `root`."""
    from transformers.pytorch_utils import Conv1D  # takes as long to import as torch

    adaptable = (*_ADAPTABLE, Conv1D)
    layers = {name: layer for name, layer in root.named_modules() if name}
    for index, module in enumerate(modules):
        named = [layer for name, layer in layers.items() if f".{name}".endswith(f".{module}")]
        others = sorted({type(layer).__name__ for layer in named if not isinstance(layer, adaptable)})
        if not named:
            known = {
                name.rpartition(".")[2]
                for name, layer in layers.items()
                if isinstance(layer, nn.Linear | Conv1D)
            }
            yield index, f"'{part}' has no layer '{module}'; {did_you_mean(module, known)}"
        elif others:
            yield index, f"expected a layer with weights, got '{module}' ({', '.join(others)})"
        groups = max((number for layer in named if rank % (number := getattr(layer, "groups", 1))), default=1)
        if groups > 1:
            yield (
                index,
                f"expected a rank that is a multiple of the {count(groups, 'group')} of the convolution '{module}', "
                f"got {rank}; set rank to {groups} or name other layers",
            )
