"""Files written tensor by tensor are those of safetensors, whatever fails on the way."""

from __future__ import annotations

import hashlib
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamkit.storage.tensor_writer import _TYPES, write_tensors


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
        lambda name: name != "__metadata__"
    )
    shapes = st.lists(st.integers(0, 4), max_size=3)
    return {
        name: torch.randint(0, 2, [*shape, draw(st.just(8))], dtype=torch.uint8)[..., 0].to(dtype)
        if dtype != torch.float8_e8m0fnu
        else torch.zeros(shape, dtype=torch.uint8).view(dtype)
        for name, shape, dtype in draw(
            st.lists(
                st.tuples(names, shapes, st.sampled_from([getattr(torch, name) for name in _TYPES])),
                unique_by=lambda each: each[0],
            )
        )
    }


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named_tensors(), st.none() | st.dictionaries(st.just("format"), st.text(max_size=9), min_size=1))
def test_the_bytes_are_those_of_safetensors(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None
) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "expected", metadata=metadata)
    record = write_tensors(tmp_path / "actual", tensors, metadata)
    content = (tmp_path / "actual").read_bytes()
    assert content == (tmp_path / "expected").read_bytes()
    assert record == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_all_tensors_are_read_in_order_after_an_error_and_without_a_file(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2) for name in "cab"} | {"d": torch.zeros(2, dtype=torch.float64)}
    for file in (tmp_path / "missing/file", None):
        read: list[str] = []

        def values(tensor: Tensor, read: list[str] = read) -> Tensor:
            read.append(next(name for name, each in tensors.items() if each is tensor))
            return tensor

        if file is None:
            assert write_tensors(file, tensors, read=values) is None
        else:
            with pytest.raises(FileNotFoundError):
                write_tensors(file, tensors, read=values)
        assert read == ["d", "a", "b", "c"]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    live: list[int] = []
    most = 0

    def read(tensor: Tensor) -> Tensor:
        nonlocal most
        values = tensor.numpy().copy()
        weakref.finalize(values, live.pop)  # the memory of the tensor below
        live.append(1)
        most = max(most, len(live))
        return torch.from_numpy(values)

    tensors = {str(number): torch.full((3,), float(number)) for number in range(5)}
    write_tensors(tmp_path / "x", tensors, read=read)
    assert most == 1 and load_file(tmp_path / "x").keys() == tensors.keys()
