"""Assertions of the checks. All fail in one form: `expected hidden.shape (B, T, D)=(0, 3, 4), got (1, 3, 4)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import DreamkitError, article, count

# A sum in another order differs by a few rounding errors. A mistake changes far more.
TOLERANCE = 1e-4


class ContractError(AssertionError):
    """A broken contract. `args` are the lines of its message; the first one is the problem."""

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class KitError(DreamkitError):
    """A request that the kit cannot serve: an unknown check or kind, or a part that cannot be built."""


def named(cls: type) -> str:
    """Return the name of a class with its article."""
    return f"{article(cls.__name__)} {cls.__name__}"


def expect(actual: Any, expected: Any, name: str, legend: str = "") -> None:
    """Fail unless `actual`, the value of `name`, equals `expected`. `legend` explains `expected`: "(N, V, dim)"."""
    if actual != expected:
        shown = [repr(value) if isinstance(value, str) else value for value in (expected, actual)]
        raise ContractError(f"expected {name}{f' {legend}' if legend else ''}={shown[0]}, got {shown[1]}")


def expect_true(holds: object, actual: str, expected: str) -> None:
    """Fail with "expected `expected`, got `actual`" unless `holds`."""
    if not holds:
        raise ContractError(f"expected {expected}, got {actual}")


def expect_value_error(call: Callable[[], object], reason: str) -> None:
    """Fail unless `call` raises a ValueError; `reason` completes "expected a ValueError for"."""
    try:
        call()
    except ValueError:
        return
    raise ContractError(f"expected a ValueError for {reason}, got a result")


def expect_shape(tensor: object, name: str, legend: str, shape: Sequence[int]) -> Tensor:
    """Return `tensor` if it is a tensor of this shape, and fail otherwise."""
    if not isinstance(tensor, Tensor):
        raise ContractError(
            f"expected {name} to be a Tensor of shape {legend}={tuple(shape)}, got {named(type(tensor))}"
        )
    expect(tuple(tensor.shape), tuple(shape), f"{name}.shape", legend)
    return tensor


def expect_finite(tensor: Tensor, name: str) -> None:
    """Fail if a value is nan or inf."""
    odd = int((~tensor.isfinite()).sum())
    expect_true(
        not odd, f"nan or inf in {odd} of {count(tensor.numel(), 'value')}", f"finite values in {name}"
    )


def expect_within(tensor: Tensor, name: str, least: float, most: float) -> None:
    """Fail if a value is outside `least` to `most` by more than rounding."""
    low, high = tensor.min().item(), tensor.max().item()
    holds = least - TOLERANCE <= low and high <= most + TOLERANCE
    expect_true(holds, f"{low:.4g} to {high:.4g}", f"values from {least:g} to {most:g} in {name}")


def expect_close(
    actual: Tensor, expected: Tensor, name: str, other: str, tolerance: float = TOLERANCE
) -> None:
    """Fail if `actual` and `expected`, called `name` and `other`, differ by more than rounding.

    `tolerance` is relative to the largest value of `expected`, or to 1 if that is smaller.
    """
    _expect_same_shape(actual, expected, name, other)
    largest = expected.abs().max().item() if expected.numel() else 0.0
    allowed = tolerance * max(1.0, largest)
    difference = _difference(actual, expected)
    holds = difference <= allowed  # False for nan
    expect_true(holds, f"{difference:.3g}", f"max|{name} - {other}| of at most {allowed:.3g}")


def expect_same(actual: Tensor, expected: Tensor, name: str, other: str) -> None:
    """Fail unless `actual` and `expected`, called `name` and `other`, are bitwise identical."""
    _expect_same_shape(actual, expected, name, other)
    difference = f"max|difference|={_difference(actual, expected):.3g}"
    expect_true(torch.equal(actual, expected), difference, f"{name} to be bitwise identical to {other}")


def expect_different(actual: Tensor, other: Tensor, name: str) -> None:
    """Fail if the two tensors, together called `name`, are equal but for rounding."""
    difference = _difference(actual, other)
    expect_true(difference > TOLERANCE, f"max|difference|={difference:.3g}", f"{name} to differ")


def _expect_same_shape(actual: Tensor, expected: Tensor, name: str, other: str) -> None:
    expect(tuple(actual.shape), tuple(expected.shape), f"the shape of {name}", f"as of {other}")


def _difference(actual: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference, 0 for empty tensors."""
    return (actual.double() - other.double()).abs().max().item() if actual.numel() else 0.0
