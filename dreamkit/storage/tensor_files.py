"""Tensors in files: safetensors and pickles of state dicts. Only its functions load torch."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamkit.errors import DreamkitError, describe_value, excerpt
from dreamkit.storage.paths import irregular_kind
from dreamkit.storage.refused_pickles import COMPRESSED, COPY_AGAIN, is_compressed, refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LFS_POINTER: Final = b"version https://git-lfs"
LONGEST_NAME: Final = 200  # of a tensor, in a message: a file may hold any name
# the types in which libraries store weights
FLOAT_TYPES: Final = ("float64", "float32", "bfloat16", "float16")
_SAVE_STATE: Final = "save its state dict alone"


def read_tensors(file: Path, error: type[DreamkitError]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a pickled state dict, mapped into memory where possible.

    Raises:
        DreamkitError: an `error`: the file is missing or damaged, or a pickle that holds more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_readable(file, error)
    if file.suffix != ".safetensors":
        # only files in the newer zip format can be mapped into memory, which avoids reading unused tensors
        content = read_pickle(file, error, mmap=zipfile.is_zipfile(file))
        if not isinstance(content, Mapping):
            raise error(f"{file}: expected a state dict of tensors, got a pickled {type(content).__name__}")
        for name, value in content.items():
            if not isinstance(name, str):
                raise error(f"{file}: expected names of tensors, got {describe_value(name)}; {_SAVE_STATE}")
            if kind := _other_kind(value):
                raise error(f"{file}: expected tensors, got '{excerpt(name)}' ({kind}); {_SAVE_STATE}")
        return dict(content)
    try:
        return load_file(file)
    except SafetensorError as problem:
        reason = (
            _pointer_problem(file)
            or f"it is not a safetensors file: {excerpt(str(problem), LONGEST_NAME)}; {COPY_AGAIN}"
        )
        raise error(f"{file}: {reason}") from problem
    except OSError as problem:
        raise error(f"{file}: {unreadable(problem)}") from problem


def read_metadata(file: Path, error: type[DreamkitError]) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file, which `read_tensors` has read.

    Raises:
        DreamkitError: an `error`: the file was replaced or removed meanwhile.
    """
    from safetensors import SafetensorError, safe_open

    _require_readable(file, error)
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as problem:
        raise error(f"{file}: {excerpt(str(problem), LONGEST_NAME)}; {COPY_AGAIN}") from problem


def read_pickle(file: Path, error: type[DreamkitError], *, mmap: bool = False) -> Any:
    """Return the content of a file of `torch.save`, which may hold tensors and plain values.

    Raises:
        DreamkitError: an `error`: the file is missing, damaged, or names code that loading would run.
    """
    import torch

    _require_readable(file, error)
    if is_compressed(file):
        raise error(f"{file}: {COMPRESSED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other formats, most of which are refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError) as problem:
        raise error(f"{file}: {unreadable(problem)}") from problem
    except Exception as problem:  # torch raises several types for damaged and for unsafe files
        raise error(f"{file}: {_pointer_problem(file) or refusal(file, problem)}") from problem


def _require_readable(file: Path, error: type[DreamkitError]) -> None:
    """Raise the reason if a file cannot be opened; safetensors calls any such file missing, and waits for a pipe."""
    try:
        kind = irregular_kind(file)
        if kind is None:
            file.open("rb").close()
    except OSError as problem:
        raise error(f"{file}: {unreadable(problem)}") from problem
    if kind is not None:
        raise error(f"{file}: expected a regular file, got {kind}")


def _other_kind(value: Any) -> str | None:
    """Return the kind of a value in a state dict, or None for a tensor with a stored number for each element."""
    import torch

    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_quantized or value.is_nested or value.is_meta or value.layout is not torch.strided:
        return "a quantized, nested or sparse tensor, or one without data"
    if value.nbytes > value.untyped_storage().nbytes():
        return "a tensor of fewer numbers than its shape has"
    return None


def unreadable(error: OSError) -> str:
    """Return why a file that was there a moment ago cannot be read, and what to do."""
    if isinstance(error, FileNotFoundError):
        return "it is missing; it was removed or replaced while it was read, so try again once its folder is complete"
    return f"cannot be read: {error.strerror or error}"


def copy_problem(name: str, file: str, origins: dict[str, str]) -> str | None:
    """Return the problem of a tensor in `file` that another shard has too, else None.

    `origins` are the files of the tensors of one set of shards, by name; it gets this one.
    """
    other = origins.setdefault(name, file)
    return None if other == file else f"{excerpt(name, LONGEST_NAME)} is in {other} too; copy all files again"


def tensor_problem(stored: Tensor, target: Tensor) -> str | None:
    """Return why the stored values cannot replace those of `target`, such as "expected float32, got int8"; else None.

    Floating-point types are interchangeable. Values that are not finite must be those that `target` already has, as in
    a mask of the architecture.
    """
    import torch

    if not (stored.dtype == target.dtype or (is_float(stored.dtype) and is_float(target.dtype))):
        return f"expected {dtype_name(target.dtype)}, got {dtype_name(stored.dtype)}"
    kind = non_finite(stored.to(target.dtype))
    if kind is None or (stored.shape == target.shape and torch.equal(stored.to(target), target)):
        return None
    return f"expected finite values, got {kind}"


def is_float(dtype: torch.dtype) -> bool:
    """Return True for the types of `FLOAT_TYPES`. Types of 8 bits need scales beside them."""
    return dtype_name(dtype) in FLOAT_TYPES


def non_finite(tensor: Tensor) -> str | None:
    """Return "NaN" or "inf" if a tensor has such a value, else None. It reads the tensor once and copies nothing."""
    import torch

    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if not is_float(tensor.dtype):
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor.float()
    extremes = torch.stack(torch.aminmax(tensor))  # NaN if any value is NaN
    if extremes.isfinite().all():
        return None
    return "NaN" if extremes.isnan().any() else "inf"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pointer_problem(file: Path) -> str | None:
    """Return the problem of a file that git-lfs has not downloaded, else None."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) != _LFS_POINTER:
            return None
    return "expected weights, got a pointer of git-lfs to them; run `git lfs pull` in its folder"
