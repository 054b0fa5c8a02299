"""A writer of safetensors files that needs one tensor at a time in memory. Only its functions load torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dreamkit.storage.folders import FileRecord
from dreamkit.storage.tensor_files import dtype_name

if TYPE_CHECKING:
    from torch import Tensor

# Names in a file's header, in the order in which safetensors writes the tensors of each type.
_TYPES: Final = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ORDER: Final = {dtype: number for number, dtype in enumerate(_TYPES)}
_ALIGNMENT: Final = 8  # bytes, of the header's length


def write_tensors(
    file: Path | None,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    read: Callable[[Tensor], Tensor] = lambda tensor: tensor.detach(),
) -> FileRecord | None:
    """Write a safetensors file, whose bytes are those of `safetensors.torch.save_file`; return its size and hash.

    `read` returns the values of one of `tensors`, of the same shape and type, on the CPU. It is called once for each,
    in the same order in every process, also after an error. So it may gather a sharded tensor; then `file` is None in
    all processes but one. The file has reached the disk at the return.
    """
    names = sorted(tensors, key=lambda name: (_ORDER[dtype_name(tensors[name].dtype)], name))
    values = (read(tensors[name]) for name in names)
    try:
        if file is None:
            return None
        return _write(file, _header([(name, tensors[name]) for name in names], metadata), values)
    finally:
        for _ in values:  # other processes may wait for this one
            pass


def tensor_bytes(tensor: Tensor) -> int:
    """Return the size of a tensor in a file."""
    return tensor.numel() * tensor.element_size()


def _write(file: Path, header: bytes, values: Iterator[Tensor]) -> FileRecord:
    size, content = 0, hashlib.sha256()
    with file.open("wb") as opened:

        def add(data: bytes | memoryview) -> None:
            nonlocal size
            opened.write(data)
            content.update(data)
            size += len(data)

        add(header)
        for tensor in values:
            add(_bytes(tensor))
            del tensor  # before the next one is read
        opened.flush()
        os.fsync(opened.fileno())
    return {"size": size, "sha256": content.hexdigest()}


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.contiguous().reshape(-1)
    if flat.stride(0) != 1:  # of one element, or none
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def _header(tensors: list[tuple[str, Tensor]], metadata: Mapping[str, str] | None) -> bytes:
    """Return the length of the header, and the header: JSON with the type, the shape and the place of each tensor."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor_bytes(tensor)
        entries[name] = {
            "dtype": _TYPES[dtype_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
