"""The layers that adapters go into, derived from the calls of a model's layers.

N images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit_timm.creating import features


def adapter_layers(model: Any, layer: int, side: int) -> tuple[str, ...]:
    """Return the full names of the layers for an adapter, in a model on the meta device that ends with `layer`.

    They are the dense layers, linear ones and 1 x 1 convolutions, if these have most of the weights that mix
    channels. Otherwise they are all convolutions that mix channels. The first layer, which reads the pixels, is left
    out, and so are gates, whose input is pooled over all places.
    """
    mixing = _mixing_layers(model, layer, side)
    dense = {name: module for name, module in mixing.items() if _is_dense(module)}
    return tuple(dense if 2 * _size(dense) >= _size(mixing) else mixing)


def _mixing_layers(model: Any, layer: int, side: int) -> dict[str, nn.Module]:
    """Return the layers that mix channels in each of many places, except the first, in the model's order.

    A layer whose weights are used without calling it is left out: its adapter would have no effect.
    """
    candidates = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    called: list[str] = []  # with many places, in the order of the calls

    def record(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            # an input that does not depend on the pixels is a table, such as of distances
            if inputs[0].requires_grad and inputs[0].numel() > width:
                called.append(name)

        return hook

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in candidates.items()]
    model.requires_grad_(False).eval()  # nobody trains a model on the meta device
    try:
        with torch.device("meta"):
            features(model, layer, torch.zeros(1, 3, side, side, requires_grad=True), stop_early=True)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: module for name, module in candidates.items() if name in called[1:] and name != called[0]}


def _is_dense(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


def _size(layers: dict[str, nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers.values())  # type: ignore[misc, operator]
