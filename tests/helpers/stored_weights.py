"""Comparison of parts with weights as they are stored with those of `from_pretrained`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit import LanguageModel
from dreamkit.parts.part import PretrainedPart


def assert_stored_equals(cls: type[PretrainedPart], config: Any, folder: Path, *, dtype: torch.dtype) -> None:
    """Check that `from_stored` maps weights of `dtype` from `folder`, and gives the part of `from_pretrained`."""
    parts, states = [], []
    for build in (cls.from_pretrained, cls.from_stored):
        torch.manual_seed(1)
        part: Any = build(config)
        assert part is not None
        if build == cls.from_stored:
            assert {tensor.dtype for tensor in part.parameters()} == {dtype}
            mapped = [*mapped_ranges(folder)]
            assert all(is_within(parameter, mapped) for parameter in part.parameters())
        if isinstance(part, LanguageModel):
            part.add_tokens(["<one>", "<two>"])
        parts.append(part.float())
        states.append(torch.get_rng_state())
    expected, actual = parts
    assert torch.equal(*states)
    assert tensors(actual).keys() == tensors(expected).keys()
    for name, tensor in tensors(expected).items():
        other = tensors(actual)[name]
        assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
        assert other.requires_grad == tensor.requires_grad, name
    assert tied(actual) == tied(expected)
    assert {name: type(module) for name, module in actual.named_modules()} == {
        name: type(module) for name, module in expected.named_modules()
    }
    assert actual.training == expected.training


def tensors(part: torch.nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, also those that no file has."""
    return dict(part.named_parameters(remove_duplicate=False)) | dict(
        part.named_buffers(remove_duplicate=False)
    )


def tied(part: torch.nn.Module) -> list[list[str]]:
    """Return the groups of names of one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def mapped_ranges(folder: Path) -> Iterator[range]:
    """Yield the addresses of this process that are mapped from files in `folder`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name.startswith(str(folder.resolve())):
            start, end = (int(address, 16) for address in addresses.split("-"))
            yield range(start, end)


def is_within(tensor: Tensor, ranges: list[range]) -> bool:
    return any(tensor.data_ptr() in each for each in ranges)
