"""What tells the makers of tables apart: what they compute, and not what they are called. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, TypedDict

# how far, by `distance`, values may be off: float32 in another order on another device stays far below these, and what
# another setting makes, or half precision, far above
TOLERANCE: Final = 1e-3  # of one cache from another
ROUNDING: Final = 1e-4  # of one computation from the next, on one device


class Sample(TypedDict):
    """A tensor, by some of its values."""

    dtype: str
    shape: list[int]
    values: list[float]


class Maker(TypedDict):
    """What computes a table.

    `weights` is a hash of those that it computes with. `preprocess` and `computes` are the tensors that it makes of a
    fixed picture, the latter in float32; `precision` is that of `train`, where another one would give others. `part`,
    its section of the recipe, is told, and not compared: what it computes is what it is.
    """

    part: dict[str, Any]
    weights: str
    precision: str
    preprocess: dict[str, Sample]
    computes: dict[str, Sample]


def differing(part: str, there: Maker, here: Maker) -> Iterator[str]:
    """A line for each thing in which what makes a table is not the `part` that made it; then settings that differ."""
    found = [*_differing(there, here)]
    for name in sorted(there["part"].keys() | here["part"].keys()) if found else ():
        was, now = there["part"].get(name), here["part"].get(name)
        if was != now:
            found.append(f"{name}: {was!r} in the cache, {now!r} now")
    for line in found:
        yield f"{part}: {line}"


def _differing(there: Maker, here: Maker) -> Iterator[str]:
    if there["weights"] != here["weights"]:
        yield f"weights: {there['weights']:.16}... in the cache, {here['weights']:.16}... now"
    if there["precision"] != here["precision"]:
        yield f"precision: {there['precision']} in the cache, {here['precision']} now"
    for key, was, now in (
        ("preprocess", there["preprocess"], here["preprocess"]),
        ("computes", there["computes"], here["computes"]),
    ):
        if was.keys() != now.keys():
            yield f"{key}: {', '.join(sorted(was))} in the cache, {', '.join(sorted(now))} now"
        for name in sorted(was.keys() & now.keys()):
            for line in _unlike(was[name], now[name]):
                yield f"{key}: {name} of a fixed picture: {line}"


def _unlike(was: Sample, now: Sample) -> Iterator[str]:
    kinds = [f"{sample['dtype']} of shape {sample['shape']}" for sample in (was, now)]
    if kinds[0] != kinds[1]:
        yield f"{kinds[0]} in the cache, {kinds[1]} now"
    elif not distance(was, now) <= TOLERANCE:
        shown = [", ".join(f"{value:.4g}" for value in sample["values"][:3]) for sample in (was, now)]
        yield f"{shown[0]}, ... in the cache, {shown[1]}, ... now ({distance(was, now):.2g} of it, at most {TOLERANCE})"


def distance(one: Sample, other: Sample) -> float:
    """How far values are off, as a fraction of their norm; NaN where one is not finite."""
    if len(one["values"]) != len(other["values"]):
        return math.inf
    size = max(math.hypot(*one["values"]), math.hypot(*other["values"]))
    off = math.dist(one["values"], other["values"])
    return off / size if size else off
