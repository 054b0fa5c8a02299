"""Networks of diffusers by name. The arguments of a constructor are read from its source, so that a spec imports none.

With the first network, diffusers imports all of the same kind, and those of transformers and peft.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import diffusers


@dataclass(frozen=True)
class Network:
    """A class of diffusers, and the file in `diffusers/models` that defines it."""

    name: str
    file: str

    @property
    def kind(self) -> Any:
        """The class, which is imported when it is asked for."""
        return getattr(diffusers, self.name)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the constructor, which are the keys of a config, with their defaults."""
        written = _written_arguments(self.name, self.file)
        if written is not None:
            return written
        return {name: each.default for name, each in inspect.signature(self.kind).parameters.items()}


def _written_arguments(name: str, file: str) -> dict[str, Any] | None:
    """Read the arguments of a class's constructor from its source.

    Return None if they are not plainly there: another release may have moved the class, or write it otherwise.
    """
    source = resources.files("diffusers") / "models" / file
    try:
        (constructor,) = (
            method
            for node in ast.parse(source.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef) and node.name == name
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        )
        takes = constructor.args
        if takes.posonlyargs or takes.vararg or takes.kwonlyargs or takes.kwarg:
            return None
        defaults = zip(takes.args[1:], takes.defaults, strict=True)
        return {argument.arg: ast.literal_eval(default) for argument, default in defaults}
    except (OSError, SyntaxError, ValueError):
        return None


UNET = Network("UNet2DConditionModel", "unets/unet_2d_condition.py")
SD3_TRANSFORMER = Network("SD3Transformer2DModel", "transformers/transformer_sd3.py")
SANA_TRANSFORMER = Network("SanaTransformer2DModel", "transformers/sana_transformer.py")
KL = Network("AutoencoderKL", "autoencoders/autoencoder_kl.py")
DC = Network("AutoencoderDC", "autoencoders/autoencoder_dc.py")
