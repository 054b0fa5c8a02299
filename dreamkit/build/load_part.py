"""Loading of a part with the weights of its source, and the checks of these weights.

Libraries cast any stored type to a model's, copy NaN, and apply adapters beside the weights, all without a word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from dreamkit.errors import SourceError, excerpt
from dreamkit.model.adapters import is_adapter
from dreamkit.parts.part import PretrainedPart
from dreamkit.storage.sources import weight_files
from dreamkit.storage.tensor_files import (
    FLOAT_TYPES,
    LONGEST_NAME,
    copy_problem,
    dtype_name,
    is_float,
    non_finite,
    read_tensors,
)
from dreamkit.storage.weight_files import is_shard


def load_part(cls: type[PretrainedPart], config: Any) -> PretrainedPart:
    """Build a part with the weights of `config.pretrained`, all finite and stored as floating-point numbers.

    Raises:
        SourceError: the weights cannot be read, are not finite or have another type, or an adapter was applied to them.
    """
    part = _load(cls, config, cls.from_pretrained)
    assert part is not None, "from_pretrained is always supported"
    return part


def load_stored_part(cls: type[PretrainedPart], config: Any) -> PretrainedPart | None:
    """Build the part of `load_part` with weights of the types in their files; return None if it has no such weights.

    Raises:
        SourceError: as `load_part`.
    """
    return _load(cls, config, cls.from_stored)


def _load(
    cls: type[PretrainedPart], config: Any, build: Callable[[Any], PretrainedPart | None]
) -> PretrainedPart | None:
    try:
        part = build(config)
    except Exception as error:
        outline = None
        with suppress(Exception):
            outline = cls.meta_modules(config)
        # the reason, if it is a file, in place of the library's text
        state = {} if outline is None else outline.state_dict()
        for problem in _file_problems(state, _files(config.pretrained, outline)):
            raise SourceError(f"'{config.pretrained}': {problem}") from error
        raise
    for problem in () if part is None else _problems(part, _files(config.pretrained, part)):
        raise SourceError(f"'{config.pretrained}': {problem}")
    return part


def _files(pretrained: str, part: nn.Module | None) -> dict[str, Path]:
    """Return the weight files of a source, without those of folders that `part` has no module of, if it is known."""
    files = weight_files(pretrained)
    modules = None if part is None else {".", *(name for name, _ in part.named_children())}
    return {
        name: file
        for name, file in files.items()
        if modules is None or str(PurePosixPath(name).parent) in modules
    }


def _problems(part: PretrainedPart, files: dict[str, Path]) -> Iterator[str]:
    """Yield the problems of a part that was loaded from `files`, which are by their names in the source."""
    state = part.state_dict()
    for name in state:
        if is_adapter(name):
            yield f"expected weights alone, got an adapter with {name}; merge it into the weights, or remove it"
    yield from _file_problems(state, files)
    for name, tensor in state.items():
        if kind := non_finite(tensor):
            yield f"expected finite weights, got {kind} in {name}; name a source with sound weights"


def _file_problems(state: dict[str, Tensor], files: dict[str, Path]) -> Iterator[str]:
    """Yield the problems of the tensors in `files`, of a part with the tensors `state`."""
    origins: dict[PurePosixPath, dict[str, str]] = defaultdict(dict)  # of the tensors in each folder
    for file, path in files.items():
        for name, tensor in read_tensors(path, SourceError).items():
            if is_shard(file) and (problem := copy_problem(name, file, origins[PurePosixPath(file).parent])):
                yield f"{file}: {problem}"
            if not is_float(tensor.dtype) and _is_weight(name, state):
                shown = excerpt(name, LONGEST_NAME)
                expected = f"{', '.join(FLOAT_TYPES[:-1])} or {FLOAT_TYPES[-1]}"
                yield (
                    f"{file}: expected {shown} in {expected}, got {dtype_name(tensor.dtype)}; name a source whose "
                    "weights are not quantized"
                )


def _is_weight(name: str, state: dict[str, Tensor]) -> bool:
    """Return True if a library loads the stored tensor `name` as floating-point numbers of the part.

    Libraries rename tensors. A part and its files may have different prefixes, and a renamed tensor is a weight if its
    name ends so: other types are those of indices and masks.
    """
    path = name.split(".")
    if path[-1] == "weight":
        return True
    return any(
        _have_common_end(path, levels)
        for inner, tensor in state.items()
        if tensor.is_floating_point()
        for levels in (inner.split("."), inner.split(".")[1:])
    )


def _have_common_end(a: Sequence[str], b: Sequence[str]) -> bool:
    """Return True if one path ends with the other one, which has two levels or is all of it."""
    shared = min(len(a), len(b))
    return a == b or (shared > 1 and a[-shared:] == b[-shared:])
