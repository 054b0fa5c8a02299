"""Tensors in files: safetensors and pickles of state dicts. Only its functions load torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamkit.errors import DreamkitError, excerpt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LFS_POINTER: Final = b"version https://git-lfs"
LONGEST_NAME: Final = 200  # of a tensor, in a message: a file may hold any name
# the types in which libraries store weights
FLOAT_TYPES: Final = ("float64", "float32", "bfloat16", "float16")
_MOST_LISTED: Final = 3
_COPY_AGAIN: Final = "copy it again from its origin"


def read_tensors(file: Path, error: type[DreamkitError]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a pickled state dict, mapped into memory where possible.

    Raises:
        DreamkitError: an `error`: the file is missing or damaged, or a pickle that holds more than tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import Tensor

    if file.suffix != ".safetensors":
        # only files in the newer zip format can be mapped into memory, which avoids reading unused tensors
        content = read_pickle(file, error, mmap=zipfile.is_zipfile(file))
        if not isinstance(content, Mapping):
            raise error(f"{file}: expected a state dict of tensors, got a pickled {type(content).__name__}")
        for name, value in content.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise error(
                    f"{file}: expected tensors, got '{excerpt(str(name))}' ({kind}); save its state dict alone"
                )
        return {str(name): tensor for name, tensor in content.items()}
    try:
        return load_file(file)
    except SafetensorError as problem:
        reason = (
            _pointer_problem(file)
            or f"it is not a safetensors file: {excerpt(str(problem), LONGEST_NAME)}; {_COPY_AGAIN}"
        )
        raise error(f"{file}: {reason}") from problem
    except OSError as problem:
        raise error(f"{file}: {unreadable(problem)}") from problem


def read_pickle(file: Path, error: type[DreamkitError], *, mmap: bool = False) -> Any:
    """Return the content of a file of `torch.save`, which may hold tensors and plain values.

    Raises:
        DreamkitError: an `error`: the file is missing, damaged, or names code that loading would run.
    """
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError) as problem:
        raise error(f"{file}: {unreadable(problem)}") from problem
    except Exception as problem:  # torch raises several types for damaged and for unsafe files
        raise error(f"{file}: {_pointer_problem(file) or _refusal(file, problem)}") from problem


def _refusal(file: Path, problem: Exception) -> str:
    """Return why torch refuses a pickle, and what to do: `problem` is torch's error."""
    if names := _code_in(file, problem):
        listed = ", ".join(f"'{excerpt(name)}'" for name in names[:_MOST_LISTED])
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        return (
            f"expected a pickle of tensors, got one that also names {listed}{more}; loading it would run this code, so "
            "dreamkit refuses it; name a safetensors file or, if you trust its author, load it in Python with "
            "torch.load and save its tensors with safetensors.torch.save_file"
        )
    return f"expected a pickle of tensors, got another kind of file or a damaged one; {_COPY_AGAIN}"


def unreadable(error: OSError) -> str:
    """Return why a file that was there a moment ago cannot be read, and what to do."""
    if isinstance(error, FileNotFoundError):
        return "it is missing; it was removed or replaced while it was read, so try again once its folder is complete"
    return f"cannot be read: {error.strerror or error}"


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


def _code_in(file: Path, problem: Exception) -> list[str]:
    """Return the names in a pickle that torch does not allow: those in its error, if the file has the older format."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a zip file, or a damaged one
        return re.findall(r"GLOBAL (\S+)", str(problem))[:1]


def _pointer_problem(file: Path) -> str | None:
    """Return the problem of a file that git-lfs has not downloaded, else None."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) != _LFS_POINTER:
            return None
    return "expected weights, got a pointer of git-lfs to them; run `git lfs pull` in its folder"
