"""Candidates that take turns: wall-clock and CPU seconds of each, and what they are compared with another one.

On a machine that others use too, CPU seconds vary far less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch


class Seconds(NamedTuple):
    """Wall-clock seconds, and CPU seconds of the process in all its threads."""

    wall: float
    cpu: float


Round = Mapping[str, Seconds]  # by the candidate's name


def now() -> Seconds:
    """Return the time, after the work that a GPU has."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def since(begin: Seconds) -> Seconds:
    """Return the seconds since `begin`, a result of `now`."""
    end = now()
    return Seconds(end.wall - begin.wall, end.cpu - begin.cpu)


def timed(call: Callable[[], object]) -> Seconds:
    """Return the seconds of a call."""
    begin = now()
    call()
    return since(begin)


def take_turns(candidates: Mapping[str, Callable[[], Seconds]], rounds: int) -> list[Round]:
    """Return the seconds of each candidate in each round; every second round has the reverse order."""
    names = [*candidates]
    return [
        {name: candidates[name]() for name in (names if number % 2 == 0 else reversed(names))}
        for number in range(rounds)
    ]


def medians(rounds: Sequence[Round], name: str) -> Seconds:
    """Return the median seconds of a candidate."""
    return Seconds(*(median(each[name][kind] for each in rounds) for kind in (0, 1)))


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of `values` and their quartiles, each formatted by `form`."""
    quartiles = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    middle, low, high = (
        form.format(value) for value in torch.tensor(values, dtype=torch.float64).quantile(quartiles).tolist()
    )
    return f"{middle} ({low} to {high})"


def compared(
    rounds: Sequence[Round], name: str, base: str, form: str = "{:.3f}", per: float = 1.0
) -> list[str]:
    """Return the cells of a candidate: its medians, divided by `per`, and its excesses over `base`, empty of `base`."""
    times = [form.format(seconds / per) for seconds in medians(rounds, name)]
    return times + ["" if name == base else excess(rounds, name, base, kind) for kind in (0, 1)]


def excess(rounds: Sequence[Round], name: str, base: str, kind: int) -> str:
    """Return the median excess of `name` over `base` within a round, in percent, and its quartiles.

    `kind` is the place of the seconds in `Seconds`.
    """
    shares = [100 * (each[name][kind] / each[base][kind] - 1) for each in rounds]
    return spread(shares, "{:+.1f}").replace(" (", " % (", 1)
