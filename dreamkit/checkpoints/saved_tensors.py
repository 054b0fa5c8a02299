"""The tensors of a checkpoint, read by region: from whole tensors, or from slices that several processes wrote.

A file of slices names in its header, under `SLICES`, the place of each slice: its offsets and the shape of the whole
tensor. Slices of one tensor have the same name in all files, do not overlap, and cover the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dreamkit.distributed import Region
from dreamkit.errors import (
    CheckpointError,
    DreamkitError,
    describe_error,
    describe_value,
    excerpt,
    first_lines,
)
from dreamkit.storage.json_files import json_object
from dreamkit.storage.tensor_files import LONGEST_NAME, dtype_name, read_metadata, read_tensors

SLICES: Final = "slices"  # key of the header's metadata
_COPY_AGAIN: Final = "copy the files of all processes again"
_MOST_LISTED: Final = 10


@dataclass(frozen=True)
class SavedTensor:
    """A saved tensor. Its slices are mapped into memory: only what is read takes any.

    Attributes:
        shape: shape of the whole tensor.
        dtype: type of its numbers.
        slices: the parts that cover it, with the offsets of each.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    slices: tuple[tuple[tuple[int, ...], Tensor], ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> SavedTensor:
        """Return a tensor that is saved in one piece."""
        return cls(tuple(tensor.shape), tensor.dtype, (((0,) * tensor.ndim, tensor),))

    def read(self, region: Region) -> Tensor:
        """Return the values of a region, which lies within the shape: a view if one slice has all of them."""
        parts = [(*part, both) for part in self.slices if (both := _overlap(part, region)) is not None]
        if len(parts) == 1:
            offsets, tensor, within = parts[0]
            if within == region:
                return tensor[_index(region, offsets)]
        values = torch.empty(region.shape, dtype=self.dtype)
        for offsets, tensor, within in parts:
            values[_index(within, region.offsets)] = tensor[_index(within, offsets)]
        return values


def write_places(places: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> dict[str, str]:
    """Return the metadata of a file of slices: `places` has offsets and the whole shape of each tensor."""
    return {SLICES: json.dumps({name: [[*offsets], [*shape]] for name, (offsets, shape) in places.items()})}


def read_slices(files: Iterable[Path]) -> dict[str, SavedTensor]:
    """Return the tensors whose slices are in `files`, by name.

    Raises:
        CheckpointError: a file is missing or damaged, or the slices overlap, leave a hole or contradict each other.
    """
    parts: dict[str, list[tuple[Path, tuple[int, ...], tuple[int, ...], Tensor]]] = {}
    for file in files:
        tensors = read_tensors(file, CheckpointError)
        for name, (offsets, shape) in _places(file, tensors).items():
            parts.setdefault(name, []).append((file, offsets, shape, tensors[name]))
    saved: dict[str, SavedTensor] = {}
    problems: list[str] = []
    for name, slices in parts.items():
        first, _, shape, tensor = slices[0]
        saved[name] = SavedTensor(shape, tensor.dtype, tuple((part[1], part[3]) for part in slices))
        problem = next(
            (
                f"{excerpt(name, LONGEST_NAME)}: {_kind(*part[2:])} in {part[0]}, {_kind(shape, tensor)} in {first}"
                for part in slices
                if (part[2], part[3].dtype) != (shape, tensor.dtype)
            ),
            None,
        )
        if problem is None and (reason := _coverage_problem(saved[name])) is not None:
            problem = f"{excerpt(name, LONGEST_NAME)}: {reason}"
        if problem is not None:
            problems.append(problem)
    if problems:
        lines = first_lines(problems, _MOST_LISTED)
        folder = next(iter(parts.values()))[0][0].parent
        raise CheckpointError(
            "\n  ".join([f"{folder}: the slices of its tensors do not fit; {_COPY_AGAIN}:", *lines])
        )
    return saved


def _places(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return offsets and whole shape of each tensor in a file of slices.

    Raises:
        CheckpointError: the header has none for a tensor, or impossible ones.
    """
    text = read_metadata(file, CheckpointError).get(SLICES)
    try:
        if text is None:
            raise DreamkitError(f"expected '{SLICES}' in its metadata, got none")
        places = json_object(text)
        if differing := sorted(places.keys() ^ tensors.keys()):
            name = excerpt(differing[0], LONGEST_NAME)
            raise DreamkitError(f"{SLICES}: expected the names of its tensors; missing or unknown: '{name}'")
        return {name: _place(name, value, tensors[name]) for name, value in places.items()}
    except ValueError as error:
        raise CheckpointError(f"{file}: {describe_error(error)}; {_COPY_AGAIN}") from error


def _place(name: str, value: Any, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    is_list = isinstance(value, list) and len(value) == 2 and all(isinstance(each, list) for each in value)
    if not is_list or any(type(number) is not int for each in value for number in each):
        expected = "offsets and shape, two lists of integers"
        raise DreamkitError(
            f"{SLICES}: {excerpt(name, LONGEST_NAME)}: expected {expected}, got {describe_value(value)}"
        )
    offsets, shape = map(tuple, value)
    is_inside = len(offsets) == len(shape) == tensor.ndim and all(
        offset >= 0 and offset + length <= size
        for offset, length, size in zip(offsets, tensor.shape, shape, strict=True)
    )
    if not is_inside:
        raise DreamkitError(
            f"{SLICES}: {excerpt(name, LONGEST_NAME)}: expected a slice inside of its tensor, got one of shape "
            f"{tuple(tensor.shape)} at {excerpt(str(offsets))} in {excerpt(str(shape))}"
        )
    return offsets, shape


def _coverage_problem(saved: SavedTensor) -> str | None:
    """Return why the slices of a tensor, which lie inside of it, are not a division of it; else None."""
    size, total = sum(tensor.numel() for _, tensor in saved.slices), prod(saved.shape)
    overlapping = next(_overlapping(saved), None)
    if overlapping is not None:
        return f"two slices overlap at {overlapping}"
    return (
        None
        if size == total
        else f"expected {excerpt(str(total))} as the sum of the sizes of its slices, got {size}"
    )


def _overlapping(saved: SavedTensor) -> Iterator[tuple[int, ...]]:
    """Yield the places where slices overlap. Slices that divide the first dimension take linear time."""
    filled = sorted((part for part in saved.slices if part[1].numel()), key=lambda part: part[0])
    active: list[tuple[tuple[int, ...], Tensor]] = []
    for offsets, tensor in filled:
        region = Region(offsets, tuple(tensor.shape))
        active = [
            part for part in active if not offsets or part[0][0] + part[1].shape[0] > offsets[0]
        ]  # `filled` is sorted: the others end before all that come
        yield from (both.offsets for part in active if (both := _overlap(part, region)) is not None)
        active.append((offsets, tensor))


def _overlap(part: tuple[tuple[int, ...], Tensor], region: Region) -> Region | None:
    """Return the region that a slice and a region share, or None if it is empty."""
    offsets, tensor = part
    first = tuple(map(max, offsets, region.offsets))
    ends = (
        min(offset + length, start + size)
        for offset, length, start, size in zip(
            offsets, tensor.shape, region.offsets, region.shape, strict=True
        )
    )
    shape = tuple(end - start for start, end in zip(first, ends, strict=True))
    return Region(first, shape) if all(length > 0 for length in shape) else None


def _index(region: Region, offsets: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a region in a tensor that begins at `offsets`."""
    return tuple(
        slice(start - offset, start - offset + length)
        for start, length, offset in zip(region.offsets, region.shape, offsets, strict=True)
    )


def _kind(shape: Sequence[int], tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} in {excerpt(str(tuple(shape)))}"
