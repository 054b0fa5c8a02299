"""Comparison of a cache with a built model: the weights of its parts, and the config files these came with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamkit.cache.manifest import PART_OF, CacheManifest, Identity
from dreamkit.cache.read import Cache
from dreamkit.cache.recipe_check import (
    IS_TRAINED,
    identity_differences,
    mismatch,
    recipe_identity,
    trained_line,
)
from dreamkit.data.shrinking import least_side
from dreamkit.distributed import whole
from dreamkit.errors import CacheError, DreamkitError, describe_error
from dreamkit.model.model import DreamModel
from dreamkit.parts.quantized import quantized_layers
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage.sources import fingerprint

FIX = "fix its plug-in; `dreamkit test-plugin DISTRIBUTION` tests its contract"


def uncacheable_reason(model: DreamModel, table: str) -> str | None:
    """Return why `table` cannot be cached, or None. Call `model.set_trainable` first.

    Raises:
        CacheError: the image decoder names a submodule that it does not have.
    """
    decoder = model.image_decoder
    if table == "latents" and decoder.posterior_module is None:
        name = type(decoder).__name__
        if decoder.has_posterior():
            return (
                f"{name} has `posterior`, but its posterior_module is None, so its weights are unknown; {FIX}"
            )
        return f"{name} has no `posterior` to compute them with: its posterior_module is None"
    if any(parameter.requires_grad for parameter in table_module(model, table).parameters()):
        return f"{PART_OF[table]} {IS_TRAINED}"
    return None


def table_module(model: DreamModel, table: str) -> nn.Module:
    """Return the module whose weights alone determine a table.

    Raises:
        CacheError: the image decoder names a submodule that it does not have.
    """
    if table == "features":
        return model.vision_encoder
    name = model.image_decoder.posterior_module
    assert name is not None, "a decoder without a posterior has no latents to cache"
    with plugin_errors(model, table, f"posterior_module is '{name}'"):
        return model.image_decoder.get_submodule(name)


@contextmanager
def plugin_errors(model: DreamModel, table: str, action: str) -> Iterator[None]:
    """Name the part and the `action` in an error of a plug-in's code.

    Raises:
        CacheError: any error, but those of dreamkit and of exhausted memory.
    """
    part = PART_OF[table]
    try:
        yield
    except (DreamkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the code of a plug-in may fail in any way
        raise CacheError(
            f"cannot compute {table}: {part} ({type(model.parts()[part]).__name__}): {action}: "
            f"{describe_error(error)}; {FIX}"
        ) from error


def table_identity(model: DreamModel, recipe: Recipe, registry: Registry, table: str) -> Identity:
    """Return the identity of a table of `model`, which was built from `recipe`. Nothing is computed or moved.

    Raises:
        SourceError: the folder that `pretrained` names cannot be found.
        CacheError: as `table_module`.
        TrainingError: as `least_side`.
    """
    pretrained = getattr(recipe.model, PART_OF[table]).config.pretrained
    side = least_side(recipe.train, model.vision_encoder.spec, model.image_decoder.spec)
    return {
        **recipe_identity(recipe, registry, table, side),  # type: ignore[typeddict-item]
        "source_files": {} if pretrained is None else fingerprint(pretrained, weights=False),
        "weights": weights_sha256(table_module(model, table)),
    }


def weights_sha256(module: nn.Module) -> str:
    """Return the hash of a module's parameters and persistent buffers, with their names, dtypes and shapes.

    Packed weights of quantized layers belong to them. If the module is sharded, every process must call this function.
    """
    hashed = hashlib.sha256()
    state = module.state_dict()
    for name, layer in quantized_layers(module):
        state |= {f"{name}.packed": layer.packed, f"{name}.scales": layer.scales}
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):  # a module's extra state may be anything
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(whole(tensor).contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def open_cache(recipe: Recipe, model: DreamModel, registry: Registry) -> Cache | None:
    """Return the cache that the training of `model` by `recipe` reads; None if `train.cache` is not set.

    Raises:
        CacheError: the cache is of another model, a part of its tables is trained, or a file is missing or cut short.
    """
    if recipe.train.cache is None:
        return None
    folder = Path(recipe.train.cache)
    manifest = CacheManifest.read(folder)
    manifest.verify(folder, read=False)
    trained, different = [], []
    for table, record in manifest.tables.items():
        if reason := uncacheable_reason(model, table):
            trained.append(trained_line(table, reason))
            continue
        part, current = PART_OF[table], table_identity(model, recipe, registry, table)
        lines = [*identity_differences(part, record["identity"], current)]
        if record["identity"]["weights"] != current["weights"] and _is_random(recipe, part):
            lines.append(
                f"{part}: the recipe names no weights (pretrained or init), so they are random and depend on "
                f"train.seed, which is {recipe.train.seed} now"
            )
        different += [f"{table}: {line}" for line in lines]
    if trained or different:
        raise CacheError(mismatch(folder, trained, different))
    return Cache(folder, manifest)


def _is_random(recipe: Recipe, part: str) -> bool:
    return recipe.init is None and getattr(recipe.model, part).config.pretrained is None
