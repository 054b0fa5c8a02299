"""Weights: whether those of a model can be had at another size, and a file of them in a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from dreamkit import SourceError
from dreamkit_timm.making import make, one_line


class _FromFile(Tensor):
    """A tensor of a file, through whatever timm makes of it until it is copied into a model."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.copy_:
            args[0].from_file = True
        return result

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # timm copies its settings, of which a state is one


def fill(name: str, arguments: Mapping[str, Any], file: Path) -> tuple[Any, frozenset[str]]:
    """A model with the weights of a file, and what of it the file lacks.

    Raises:
        SourceError: the file is damaged, or its weights are of other shapes.
    """
    try:
        state = {key: each.as_subclass(_FromFile) for key, each in load_state_dict(str(file)).items()}
        model = make(name, arguments, state)
    except Exception as error:  # what is in the file reaches timm's conversions, which fail in any way
        raise SourceError(f"{file}: timm cannot load it: {one_line(error)}") from error
    return model, frozenset(key for key, each in _weights(model).items() if not _is_filled(each))


def misfit(name: str, arguments: Mapping[str, Any], own: nn.Module) -> str | None:
    """Why the weights of `own` do not fit the model that other arguments make, or None where they do.

    All of it is on the meta device, and what timm does to weights of another size is done.
    """
    state = own.state_dict()
    try:
        with torch.device("meta"):
            make(name, arguments, state)
    except Exception as error:  # timm's conversions fail in any way
        shapes = re.search(r"for ([\w.]+): .*?\[([\d, ]*)\].*?\[([\d, ]*)\]", str(error))
        return one_line(error) if shapes is None else "{} is {} in them, and {} here".format(*shapes.groups())
    return None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """By name; tables of indices and counters of batches are the architecture's."""
    return {name: each for name, each in model.state_dict(keep_vars=True).items() if each.is_floating_point()}


def _is_filled(weight: Tensor) -> bool:
    """Whether it was copied from a file, and forgets it."""
    return weight.__dict__.pop("from_file", False)
