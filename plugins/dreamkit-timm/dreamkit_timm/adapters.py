"""Where adapters go, found from what the layers of a model do.

N images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreamkit_timm.making import features


def adaptable(model: Any, layer: int, side: int) -> tuple[str, ...]:
    """The full names of the layers an adapter goes into, of a model on the meta device that ends with `layer`.

    They are the dense ones, linear layers and 1 x 1 convolutions, where these hold most of the weights that mix
    channels; else all convolutions that do. Left out are the first layer, which reads the pixels, and gates, which work
    on what was pooled over all places.
    """
    found = _working(model, layer, side)
    dense = {name: each for name, each in found.items() if _is_dense(each)}
    return tuple(dense if 2 * _size(dense) >= _size(found) else found)


def _working(model: Any, layer: int, side: int) -> dict[str, nn.Module]:
    """The layers that mix channels in each of many places, but for the first, in the model's order.

    A layer whose weights are used without it being called is not there: an adapter of it would do nothing.
    """
    mixing = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) or (isinstance(each, nn.Conv2d) and each.groups == 1)
    }
    called: list[str] = []  # with many places, in the order of the calls

    def watch(name: str) -> Any:
        def before(module: Any, inputs: tuple[Tensor, ...]) -> None:
            read = inputs[0]
            width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            # what does not depend on the pixels is a table that a network reads, such as of distances
            if read.requires_grad and read.numel() > width:
                called.append(name)

        return before

    handles = [each.register_forward_pre_hook(watch(name)) for name, each in mixing.items()]
    needing = {name: each.requires_grad for name, each in model.named_parameters()}
    try:
        model.requires_grad_(False)
        with torch.device("meta"):
            features(model.eval(), layer, torch.zeros(1, 3, side, side, requires_grad=True), stop_early=True)
    finally:
        for handle in handles:
            handle.remove()
        for name, each in model.named_parameters():
            each.requires_grad_(needing[name])
    return {name: each for name, each in mixing.items() if name in called[1:] and name != called[0]}


def _is_dense(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


def _size(layers: dict[str, nn.Module]) -> int:
    return sum(each.weight.numel() for each in layers.values())  # type: ignore[misc, operator]
