"""Quantization of a part: which of its layers get frozen weights in 4 or 8 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Final

from torch import nn

from dreamkit.errors import DreamkitError, RecipeError, RecipeProblem
from dreamkit.model.adapters import initialise_magnitudes, is_adapter
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.language import LanguageModel
from dreamkit.parts.part import Part
from dreamkit.parts.quantized import QuantizedLinear
from dreamkit.recipe.sections import WITH_SOURCE, Recipe

LIBRARIES: Final = {"nf4": "bitsandbytes"}


def require_libraries(recipe: Recipe) -> None:
    """Check that the packages are installed that quantize the parts of `recipe`.

    Raises:
        RecipeError: one is missing.
    """
    problems = []
    for part in WITH_SOURCE:
        key, kind = f"model.{part}.quantize", getattr(recipe.model, part).quantize
        library = LIBRARIES.get(kind)
        if library is not None and find_spec(library) is None:
            message = (
                f"{kind} needs the package {library}, which is not installed; run pip install "
                "'dreamkit-core[quantize]', or set int8"
            )
            problems.append(RecipeProblem(recipe.place(key), key, message))
    if problems:
        raise RecipeError(problems)


def quantize_part(part: Part, kind: str) -> None:
    """Replace the linear layers of a part by quantized ones, in place, one after the other.

    Adapters, and the modules that `Part.unquantized` describes, stay as they are; so do layers that share their weights
    with another module, and those of other classes than `torch.nn.Linear`. The magnitudes of DoRA become those of the
    quantized weights, so that a new adapter changes no output.

    Raises:
        DreamkitError: no layer can be quantized.
    """
    names = [*_layers(part)]
    if not names:
        raise DreamkitError(
            f"expected linear layers to quantize, got none in {type(part).__name__}; leave out quantize"
        )
    for name in names:
        layer = part.get_submodule(name)
        assert isinstance(layer, nn.Linear), "the names are those of linear layers"
        part.set_submodule(name, QuantizedLinear.of(layer, kind))
    if any(is_adapter(name) for name, _ in part.named_parameters()):
        initialise_magnitudes(part)


def _layers(part: Part) -> Iterator[str]:
    """Yield the names of the layers to quantize."""
    owners = Counter(id(parameter) for _, parameter in part.named_parameters(remove_duplicate=False))
    kept = [PurePosixPath(name.replace(".", "/")) for name in _kept_modules(part)]
    vocabulary = part.spec.vocab_size if isinstance(part, LanguageModel) else None
    for name, layer in part.named_modules():
        if type(layer) is not nn.Linear or is_adapter(name):
            continue
        path = PurePosixPath(name.replace(".", "/"))
        is_kept = bool({*path.parts} & {*part.unquantized}) or any(map(path.is_relative_to, kept))
        # a layer with an output for each id of the vocabulary is a head
        if not is_kept and owners[id(layer.weight)] == 1 and layer.out_features != vocabulary:
            yield name


def _kept_modules(part: Part) -> tuple[str, ...]:
    if not isinstance(part, ImageDecoder):
        return ()
    posterior = (part.posterior_module,) if part.posterior_module else ()
    return (*posterior, *part.spec.float32_modules)
