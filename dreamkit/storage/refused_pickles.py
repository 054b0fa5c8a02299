"""Pickles that are not read, and why: those with code, of other programs, or in compressed files."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from dreamkit.errors import excerpt

COPY_AGAIN: Final = "copy it again from its origin"
COMPRESSED: Final = (
    "expected a file of torch.save, got a zip file with compressed entries, which libraries read as garbage; "
    + COPY_AGAIN
)
_CONVERT: Final = (
    "if you trust its author, load it in Python with torch.load or pickle.load and save its tensors with "
    "safetensors.torch.save_file"
)
_MOST_LISTED: Final = 3
_START: Final = 2**20  # bytes of a pickle in which a name is looked for


def refusal(file: Path, problem: Exception) -> str:
    """Return why torch refuses a pickle, and what to do: `problem` is torch's error."""
    if names := _code_in(file, problem):
        listed = ", ".join(f"'{excerpt(name)}'" for name in names[:_MOST_LISTED])
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        return (
            f"expected a pickle of tensors, got one that also names {listed}{more}; loading it would run this code, so "
            f"dreamkit refuses it; name a safetensors file or, {_CONVERT}"
        )
    if _is_pickle(file):
        return f"expected a file of torch.save, got a pickle of another program; {_CONVERT}"
    return f"expected a pickle of tensors, got another kind of file or a damaged one; {COPY_AGAIN}"


def is_compressed(file: Path) -> bool:
    """Return True for a zip file with compressed entries; those of `torch.save` are not.

    torch takes an entry that is mapped into memory as it is in the file, and unpacks another one to any size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception:  # another kind of file, or a damaged one: zipfile raises several types
        return False


def _code_in(file: Path, problem: Exception) -> list[str]:
    """Return the names in a pickle that torch does not allow, only the first one if the file is no zip file."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a zip file, or a damaged one
        return re.findall(r"GLOBAL (\S+)", str(problem))[:1] or _first_name(file)


def _first_name(file: Path) -> list[str]:
    """Return the first name of code in a pickle of another program, without the names that torch allows."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = _get_allowed_globals()
    with file.open("rb") as opened:
        start = io.BytesIO(opened.read(_START))
    try:
        return next(([name] for name in _names(start) if name not in allowed), [])
    except Exception:  # another kind of file: pickletools raises several types
        return []


def _is_pickle(file: Path) -> bool:
    """Return True for a small file that is one pickle, of any protocol, to its end."""
    with file.open("rb") as opened:
        start = io.BytesIO(opened.read(_START))
    try:
        deque(_names(start), maxlen=0)
    except Exception:  # another kind of file: pickletools raises several types
        return False
    return start.tell() == file.stat().st_size


def _names(pickled: io.BytesIO) -> Iterator[str]:
    """Yield the names of code in a pickle, which may have operations unknown to torch.

    Newer protocols put a module and a name on the stack, just before their use: each as a text, or from the memo if
    an earlier name has it too.
    """
    stack: deque[Any] = deque(maxlen=2)
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield ".".join(text for text in stack if isinstance(text, str)) or "?"
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] if stack else None
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = stack[-1] if stack else None
        elif operation.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument))
        elif operation.stack_after:
            stack.append(argument)
