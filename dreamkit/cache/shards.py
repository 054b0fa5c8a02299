"""Rows of tensors, found by the content of an image, in files of a limited size."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags
from PIL.Image import Image as Picture
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamkit.cache.manifest import TensorRecord, shard_name
from dreamkit.errors import CacheError
from dreamkit.storage.writing import writing

KEYS = "keys"  # the tensor of a shard that holds the keys of its rows
KEY_BYTES = 16


def picture_key(picture: Picture) -> bytes:
    """Return the key of a decoded image: a hash of `KEY_BYTES` bytes of everything that a part may see of it.

    Mode, size and bytes are not all: `to_rgb` also uses the palette, the transparent colour, the orientation and the
    colour profile.
    """
    hashed = hashlib.blake2b(picture.tobytes(), digest_size=KEY_BYTES)
    palette = picture.getpalette(None) if picture.mode in ("P", "PA") else None
    orientation = picture.getexif().get(ExifTags.Base.Orientation)
    seen = (picture.mode, picture.size, palette, picture.info.get("transparency"), orientation)
    hashed.update(repr(seen).encode())
    hashed.update(picture.info.get("icc_profile") or b"")
    return hashed.digest()


class ShardWriter:
    """The files of a table while they are written, each of at most `rows_per_file` rows.

    Attributes:
        files: number of the next file.
    """

    def __init__(self, folder: Path, table: str, rows_per_file: int, first_file: int = 0) -> None:
        self.folder, self.table, self.rows_per_file, self.files = folder, table, rows_per_file, first_file
        self._keys: list[bytes] = []
        self._rows: list[dict[str, Tensor]] = []

    def add(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Add one row for each of `keys`; `rows` are tensors (N, ...)."""
        for number, key in enumerate(keys):
            self._keys.append(key)
            self._rows.append({name: tensor[number] for name, tensor in rows.items()})
            if len(self._rows) == self.rows_per_file:
                self.flush()

    def flush(self) -> None:
        """Write the rows that are not in a file yet.

        Raises:
            OutputError: the file cannot be written.
        """
        if not self._rows:
            return
        rows = {name: torch.stack([row[name] for row in self._rows]) for name in self._rows[0]}
        keys = torch.frombuffer(bytearray(b"".join(self._keys)), dtype=torch.uint8).view(-1, KEY_BYTES)
        with writing(file := self.folder / shard_name(self.table, self.files)):
            save_file({KEYS: keys, **rows}, file)
        self.files += 1
        self._keys, self._rows = [], []


def tensor_record(tensor: Tensor) -> TensorRecord:
    """Return the dtype and shape of a tensor of a row."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


class Shards:
    """The rows of a table, for reading. Each process opens a file when it first reads a row of it.

    Raises:
        CacheError: a file cannot be read or is not a shard of the table.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._handles: dict[tuple[int, int], Any] = {}  # by process and file
        keys = [self._keys(number) for number in range(len(files))]
        # two numbers of 64 bits, sorted by the first: a list of bytes would be ten times as large
        words = torch.cat(keys).contiguous().view(torch.int64)
        order = words[:, 0].argsort()
        self._first, self._second = (column.contiguous() for column in words[order].unbind(1))
        self._file = torch.cat([torch.full((len(rows),), file) for file, rows in enumerate(keys)])[order]
        self._row = torch.cat([torch.arange(len(rows)) for rows in keys])[order]

    def __len__(self) -> int:
        return len(self._first)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def tensors(self) -> dict[str, TensorRecord]:
        """Return dtype and shape of each tensor in a row."""
        return {name: tensor_record(tensor[0]) for name, tensor in self.rows([(0, 0)]).items()}

    def find(self, key: bytes) -> tuple[int, int] | None:
        """Return file and row of a key; None if there is no such row."""
        first, second = struct.unpack("=qq", key)
        at = int(torch.searchsorted(self._first, first))
        while at < len(self) and self._first[at] == first:
            if self._second[at] == second:
                return int(self._file[at]), int(self._row[at])
            at += 1
        return None

    def _keys(self, number: int) -> Tensor:
        """Return the keys (rows, KEY_BYTES) of a file that has the tensors of the first file, with its own rows."""
        (rows, tensors), (_, expected) = self._contents(number), self._contents(0)
        if len(rows) != 1 or tensors != expected or tensors.get(KEYS) != ("U8", [KEY_BYTES]):
            raise CacheError(
                f"{self.files[number]}: expected rows of a cache, got other tensors; compute the cache again"
            )
        return self._open(number).get_tensor(KEYS)

    def _contents(self, number: int) -> tuple[set[int], dict[str, tuple[str, list[int]]]]:
        """Return the numbers of rows of the tensors in a file, and the dtype and shape of a row of each."""
        shard = self._open(number)
        slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
        shapes = {name: each.get_shape() for name, each in slices.items()}
        rows = {shape[0] if shape else 0 for shape in shapes.values()}
        return rows - {0}, {name: (slices[name].get_dtype(), shape[1:]) for name, shape in shapes.items()}

    def rows(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Return the tensors (N, ...) of the rows at N `places`, in their order."""
        names = [name for name in self._open(places[0][0]).keys() if name != KEYS]  # noqa: SIM118
        return {
            name: torch.cat([self._open(file).get_slice(name)[row : row + 1] for file, row in places])
            for name in names
        }

    def _open(self, number: int) -> Any:
        owner = os.getpid(), number
        if owner not in self._handles:
            try:
                self._handles[owner] = safe_open(self.files[number], "pt").__enter__()
            except (SafetensorError, OSError) as error:
                raise CacheError(f"{self.files[number]} cannot be read: {error}") from error
        return self._handles[owner]
