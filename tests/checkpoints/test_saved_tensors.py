"""Tensors saved in slices: any division reads back, and a header that does not divide its tensor is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dreamkit.checkpoints.saved_tensors import SLICES, SavedTensor, read_slices, write_places
from dreamkit.distributed import Region
from dreamkit.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn]
Slice = tuple[tuple[int, ...], Tensor]  # offsets and values


def cut(tensor: Tensor, edges: Sequence[Sequence[int]]) -> list[Slice]:
    """Divide a tensor at these indices of each dimension; empty slices stay."""
    ends = [[0, *sorted(each), size] for each, size in zip(edges, tensor.shape, strict=True)]
    return [
        (tuple(start for start, _ in box), tensor[tuple(slice(*each) for each in box)].contiguous())
        for box in product(*(pairwise(each) for each in ends))
    ]


@st.composite
def divided(draw: st.DrawFn) -> tuple[Tensor, list[Slice], Region]:
    """Return a tensor, its slices in any order, and a region of it."""
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    tensor = (torch.arange(torch.Size(shape).numel()) % 100).reshape(shape).to(dtype)
    slices = cut(tensor, [draw(st.lists(st.integers(0, size), max_size=3)) for size in shape])
    bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    region = Region(tuple(start for start, _ in bounds), tuple(end - start for start, end in bounds))
    return tensor, draw(st.permutations(slices)), region


def write(folder: Path, slices: Sequence[Slice], shape: Sequence[int]) -> list[Path]:
    """Write a file for each slice; return their paths."""
    paths = [folder / f"{number}.safetensors" for number in range(len(slices))]
    for path, (offsets, tensor) in zip(paths, slices, strict=True):
        save_file({"x": tensor}, path, metadata=write_places({"x": (offsets, shape)}))
    return paths


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(divided())
def test_any_division_reads_back_any_region(tmp_path: Path, case: tuple[Tensor, list[Slice], Region]) -> None:
    tensor, slices, region = case
    saved = read_slices(write(tmp_path, slices, tensor.shape))["x"]
    index = tuple(slice(start, start + size) for start, size in zip(*region, strict=True))
    for each in (saved, SavedTensor.whole(tensor)):
        assert (each.shape, each.dtype) == (tuple(tensor.shape), tensor.dtype)
        values = each.read(region)
        assert values.dtype == tensor.dtype
        assert torch.equal(values.float(), tensor[index].float())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(divided(), st.data())
def test_a_missing_or_moved_slice_is_refused(
    tmp_path: Path, case: tuple[Tensor, list[Slice], Region], data: st.DataObject
) -> None:
    tensor, slices, _ = case
    full = [number for number, (_, part) in enumerate(slices) if part.numel()]
    if len(full) < 2:
        return
    number = data.draw(st.sampled_from(full))
    if data.draw(st.booleans()):
        changed = [*slices[:number], *slices[number + 1 :]]
    else:  # a slice that is there twice hides another one
        (offsets, part), (other, _) = slices[number], slices[data.draw(st.sampled_from(full))]
        if other == offsets:
            return
        changed = [*slices[:number], (other, part), *slices[number + 1 :]]
    with pytest.raises(CheckpointError, match=r"slices overlap|sum of the sizes|inside of its tensor"):
        read_slices(write(tmp_path, changed, tensor.shape))


def test_a_region_of_one_slice_is_a_view_of_its_file(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).reshape(6, 4)
    saved = read_slices(write(tmp_path, cut(tensor, [[3], []]), tensor.shape))["x"]
    view = saved.read(Region((3, 1), (2, 2)))
    assert view.untyped_storage().data_ptr() == saved.slices[1][1].untyped_storage().data_ptr()


HUGE = 2**62


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"x": [[0, 0], [4, 3]]}, "expected 12 as the sum of the sizes of its slices, got 6"),
        ({"x": [[0, 0], [HUGE, HUGE]]}, "sum of the sizes of its slices, got 6"),
        ({"x": [[-1, 0], [2, 3]]}, "inside of its tensor, got one of shape"),
        ({"x": [[1, 0], [2, 3]]}, "inside of its tensor"),
        ({"x": [[0], [2]]}, "inside of its tensor"),
        ({"x": [[0, 0], [6]]}, "inside of its tensor"),
        ({"x": [[0, 0.0], [2, 3]]}, "two lists of integers"),
        ({"x": [[0, True], [2, 3]]}, "two lists of integers"),
        ({"x": [[0, 0], [2, 3], []]}, "two lists of integers"),
        ({"x": None}, "two lists of integers"),
        ({"x": [[0, 0], [2, 10**90]]}, "at most 80 digits"),
        ({}, "missing or unknown: 'x'"),
        ({"x": [[0, 0], [2, 3]], "y": [[0], [1]]}, "missing or unknown: 'y'"),
        ([], "expected a JSON object"),
        ({"x": [[[[[]]]]]}, "two lists of integers"),
    ],
    ids=str,
)
def test_a_hostile_header_is_refused(tmp_path: Path, places: Any, message: str) -> None:
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "x.safetensors", metadata={SLICES: json.dumps(places)})
    with pytest.raises(CheckpointError, match=message) as caught:
        read_slices([tmp_path / "x.safetensors"])
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [None, "", "{", "\x00", "[" * 10_000])
def test_a_header_without_places_is_refused(tmp_path: Path, text: str | None) -> None:
    metadata = None if text is None else {SLICES: text}
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*copy the files of all processes again"):
        read_slices([tmp_path / "x.safetensors"])


def test_slices_of_other_types_or_shapes_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, [((0,), torch.zeros(2))], [4])
    for dtype, shape in [(torch.float64, [4]), (torch.float32, [5])]:
        second = {"x": torch.zeros(2, dtype=dtype)}
        save_file(second, tmp_path / "b.safetensors", write_places({"x": ([2], shape)}))
        with pytest.raises(CheckpointError, match=r"x: float.* in \(.\d?,\) in .*b\.safetensors, float32 in"):
            read_slices([*paths, tmp_path / "b.safetensors"])


def test_many_slices_of_the_first_dimension_take_linear_time(tmp_path: Path) -> None:
    tensor = torch.arange(3000.0)
    saved = SavedTensor((3000,), torch.float32, tuple(cut(tensor, [range(1, 3000)])))
    assert torch.equal(saved.read(Region((0,), (3000,))), tensor)
