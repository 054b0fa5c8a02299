"""Networks of diffusers by name, with the arguments of their constructors, and not imported for these.

diffusers imports its other networks with the first one, and those of transformers and peft with them.
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
    """A class of diffusers, and the module in `diffusers.models` whose source defines it."""

    name: str
    module: str

    @property
    def kind(self) -> Any:
        """The class, which is imported when it is asked for."""
        return getattr(diffusers, self.name)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the constructor, which are the keys of a config, with their defaults."""
        written = _written_arguments(self.name, self.module)
        if written is not None:
            return written
        return {name: each.default for name, each in inspect.signature(self.kind).parameters.items()}


def _written_arguments(name: str, module: str) -> dict[str, Any] | None:
    """Read the arguments of a class's constructor from its source; return None if they are not plainly there."""
    file = resources.files("diffusers").joinpath(
        "models", *module.split(".")[:-1], f"{module.split('.')[-1]}.py"
    )
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        (made,) = (
            method
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == name
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        )
        names = [each.arg for each in made.args.args[1:]]
        return {
            name: ast.literal_eval(default) for name, default in zip(names, made.args.defaults, strict=True)
        }
    except (OSError, SyntaxError, ValueError):  # another release may have moved it, or write it otherwise
        return None


UNET = Network("UNet2DConditionModel", "unets.unet_2d_condition")
SD3_TRANSFORMER = Network("SD3Transformer2DModel", "transformers.transformer_sd3")
SANA_TRANSFORMER = Network("SanaTransformer2DModel", "transformers.sana_transformer")
KL = Network("AutoencoderKL", "autoencoders.autoencoder_kl")
DC = Network("AutoencoderDC", "autoencoders.autoencoder_dc")
