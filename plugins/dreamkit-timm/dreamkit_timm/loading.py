"""The weights of a file in a model, and a test of a model's weights at another size."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from dreamkit import SourceError, describe_error
from dreamkit_timm.creating import create_model


class _FileTensor(Tensor):
    """A tensor of a file. It marks each weight that it, or a tensor that timm computes from it, is copied into."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.copy_:
            args[0].from_file = True
        return result

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # timm copies its settings, and with them the state


def load_model(name: str, arguments: Mapping[str, Any], file: Path) -> tuple[Any, frozenset[str]]:
    """Create a model with the weights of a file, and return it with the names of weights that the file lacks.

    Raises:
        SourceError: the file is damaged, or its weights have other shapes.
    """
    try:
        state = {key: tensor.as_subclass(_FileTensor) for key, tensor in load_state_dict(str(file)).items()}
        model = create_model(name, arguments, state)
    except Exception as error:  # timm's conversions raise any type of error
        raise SourceError(f"{file}: timm cannot load it: {describe_error(error)}") from error
    # each copy from the file left a mark, which is removed here
    missing = {
        name
        for name, weight in model.state_dict(keep_vars=True).items()
        # other tensors are tables of indices and counters of batches, which belong to the architecture
        if weight.is_floating_point() and not weight.__dict__.pop("from_file", False)
    }
    return model, frozenset(missing)


def weights_error(name: str, arguments: Mapping[str, Any], model: nn.Module) -> str | None:
    """Return why the weights of `model` do not fit the model that `arguments` create, or None if they do.

    Both are on the meta device. timm first resizes the weights as it does for a file.
    """
    state = model.state_dict()
    try:
        with torch.device("meta"):
            create_model(name, arguments, state)
    except Exception as error:  # timm's conversions raise any type of error
        shapes = re.search(r"for ([\w.]+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", str(error))
        if shapes is None:
            return describe_error(error)
        weight, actual, expected = shapes.groups()
        return f"expected shape [{expected}] of {weight}, got [{actual}]"
    return None
