"""Networks of diffusers by name.

A constructor's arguments are read from its source, because importing a network loads all of diffusers' networks, and
those of transformers and peft. So a spec is inferred without these imports.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging

from dreamkit import SourceError, count, excerpt, library_errors
from dreamkit_diffusers import keys


@dataclass(frozen=True)
class Network:
    """A class of diffusers by `name`, the file in `diffusers/models` that defines it, and the keys of its configs."""

    name: str
    file: str
    keys: keys.Keys

    @property
    def model_class(self) -> Any:
        """The class, imported on access."""
        return getattr(diffusers, self.name)

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """The default of each constructor argument. The arguments are the keys of a config."""
        defaults = _source_defaults(self.name, self.file)
        if defaults is not None:
            return defaults
        parameters = inspect.signature(self.model_class).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    def load(self, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
        """Load a model. Weights that are stored as `dtype` are mapped from their files.

        Raises:
            SourceError: weights are damaged or missing.
        """
        with library_errors(f"the {self.name} in {folder} cannot be loaded"), _quiet_library():
            model, info = self.model_class.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                # without it diffusers logs an error before it reads `.bin` files
                use_safetensors=any(file.is_file() for file in folder.glob("*.safetensors")),
            )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise SourceError(
                f"the weights in {folder} lack {count(len(missing), 'tensor')} of its config.json, such as "
                f"'{missing[0]}'; download the files again"
            )
        if unused := sorted(info["unexpected_keys"]):
            logging.get_logger(__name__).warning(
                f"{folder}: ignored {count(len(unused), 'tensor')} that its config.json has no place for, such as "
                f"'{excerpt(unused[0])}'"
            )
        return model


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Suppress the library's warnings, which list every tensor that is missing or unused."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _source_defaults(name: str, file: str) -> dict[str, Any] | None:
    """Read the defaults of a class's constructor from its source.

    Return None if the source has another form: another release may have moved or rewritten the class.
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
        signature = constructor.args
        if signature.posonlyargs or signature.vararg or signature.kwonlyargs or signature.kwarg:
            return None
        pairs = zip(signature.args[1:], signature.defaults, strict=True)
        return {argument.arg: ast.literal_eval(default) for argument, default in pairs}
    except (OSError, SyntaxError, ValueError):
        return None


# an adapter's targets in attention layers
ATTENTION_LAYERS = tuple(
    f"{attention}.{layer}"
    for attention in ("attn1", "attn2")
    for layer in ("to_q", "to_k", "to_v", "to_out.0")
)

UNET = Network("UNet2DConditionModel", "unets/unet_2d_condition.py", keys.UNET)
SD3_TRANSFORMER = Network("SD3Transformer2DModel", "transformers/transformer_sd3.py", keys.SD3_TRANSFORMER)
SANA_TRANSFORMER = Network(
    "SanaTransformer2DModel", "transformers/sana_transformer.py", keys.SANA_TRANSFORMER
)
KL = Network("AutoencoderKL", "autoencoders/autoencoder_kl.py", keys.KL)
DC = Network("AutoencoderDC", "autoencoders/autoencoder_dc.py", keys.DC)
