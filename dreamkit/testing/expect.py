"""What a check says of a part, in one form: `hidden.shape=(1, 3, 4), but should be (B, T, D)=(0, 3, 4)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import DreamkitError, article

# Sums in another order differ by some rounding errors; what a mistake changes is far larger.
TOLERANCE = 1e-4


class ContractError(AssertionError):
    """A part that does not keep its contract. `args` are the lines of its message, what is wrong first."""

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class KitError(DreamkitError):
    """The kit was asked for something it cannot do: an unknown check or kind, or a part that cannot be built."""


def named(cls: type) -> str:
    """Return the name of a class, with its article."""
    return f"{article(cls.__name__)} {cls.__name__}"


def expect(found: Any, wanted: Any, name: str, legend: str = "") -> None:
    """`found`, which is called `name`, must be equal to `wanted`; `legend` says what `wanted` stands for."""
    if found != wanted:
        told, want = (repr(value) if isinstance(value, str) else value for value in (found, wanted))
        raise ContractError(f"{name}={told}, but should be {f'{legend}=' if legend else ''}{want}")


def expect_true(holds: object, found: str, wanted: str) -> None:
    """The form of the message where what is wanted is no single value."""
    if not holds:
        raise ContractError(f"{found}, but should be {wanted}")


def expect_shape(tensor: object, name: str, legend: str, shape: Sequence[int]) -> Tensor:
    """The tensor, which must be one, of the given shape."""
    if not isinstance(tensor, Tensor):
        raise ContractError(
            f"{name}={type(tensor).__name__}, but should be a Tensor of {legend}={tuple(shape)}"
        )
    expect(tuple(tensor.shape), tuple(shape), f"{name}.shape", legend)
    return tensor


def expect_finite(tensor: Tensor, name: str) -> None:
    odd = int((~tensor.isfinite()).sum())
    expect_true(not odd, f"{name} is nan or inf in {odd} of {tensor.numel()} values", "finite")


def expect_within(tensor: Tensor, name: str, least: float, most: float) -> None:
    """Every value from `least` to `most`, but for rounding."""
    low, high = tensor.min().item(), tensor.max().item()
    holds = least - TOLERANCE <= low and high <= most + TOLERANCE
    expect_true(holds, f"{name} ranges from {low:.4g} to {high:.4g}", f"from {least:g} to {most:g}")


def expect_close(found: Tensor, wanted: Tensor, name: str, other: str, tolerance: float = TOLERANCE) -> None:
    """Equal but for rounding, relative to the largest value; `name` and `other` say what the two are."""
    expect(tuple(found.shape), tuple(wanted.shape), f"{name}.shape", f"{other}.shape")
    allowed = tolerance * (1.0 if not wanted.numel() else max(1.0, wanted.abs().max().item()))
    difference = _difference(found, wanted)
    holds = difference <= allowed  # not so for nan
    expect_true(holds, f"max|{name} - {other}|={difference:.3g}", f"at most {allowed:.3g}")


def expect_same(found: Tensor, wanted: Tensor, name: str, other: str) -> None:
    """Equal bit for bit."""
    expect(tuple(found.shape), tuple(wanted.shape), f"{name}.shape", f"{other}.shape")
    if not torch.equal(found, wanted):
        raise ContractError(
            f"max|{name} - {other}|={_difference(found, wanted):.3g}, but should be 0 to the bit"
        )


def expect_different(found: Tensor, other: Tensor, what: str) -> None:
    """Not equal, not even nearly; `what` names the two."""
    difference = _difference(found, other)
    expect_true(difference > TOLERANCE, f"max|{what}|={difference:.3g}", f"more than {TOLERANCE:g}")


def _difference(found: Tensor, wanted: Tensor) -> float:
    if not found.numel():
        return 0.0
    return (found.double() - wanted.double()).abs().max().item()
