"""The weights in a model's folder, mapped from their files in the type in which they are stored."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from dreamkit.errors import SourceError
from dreamkit.storage.tensor_files import is_float, read_tensors
from dreamkit.storage.weight_files import weights_in, weights_read

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class StoredWeights(NamedTuple):
    """The tensors of a model's files, mapped into memory.

    Attributes:
        dtype: the type of all floating-point tensors.
        tensors: the tensors by their names in the files.
    """

    dtype: torch.dtype
    tensors: dict[str, Tensor]


def stored_weights(folder: Path) -> StoredWeights | None:
    """Return the weights in `folder`; None if they have several types, or a format that cannot be mapped.

    A library that loads a model in this type can map its parameters from the files. Folders inside `folder` are other
    models.

    Raises:
        SourceError: a weight file is missing or damaged.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read: {error.strerror or error}") from error
    tensors: dict[str, Tensor] = {}
    for name in weights_read(folder, weights_in(names, PurePosixPath())):
        if not (name.endswith(".safetensors") or zipfile.is_zipfile(folder / name)):
            return None  # an old pickle, which is read whole
        tensors |= read_tensors(folder / name, SourceError)
    types = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return StoredWeights(types.pop(), tensors) if len(types) == 1 and all(map(is_float, types)) else None
