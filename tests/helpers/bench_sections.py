"""Sections that a process of its own runs, so they are functions of a module: some end well, some do not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.kernels.bench.figures import Figure
from dreamkit.kernels.bench.harness import Bench, Case, measured
from dreamkit.kernels.bench.isolated import Send
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import Record

CPU = torch.device("cpu")
RATES = {torch.bfloat16: Figure(1e12), torch.float32: Figure(1e11)}
MACHINE = Machine(Figure(1e9), RATES, l2_bytes=1000, about={"device": "none", "date": "2026-01-01"})
LEFT, PAGE = "LEFT", "PAGE"  # environment variables: the file that seconds left are added to, and the page


def case(candidates: dict[str, Callable[..., Any]], **settings: Any) -> Case:
    return Case("table", "case", lambda: (torch.ones(4),), candidates, **settings)


def same(x: Tensor) -> Tensor:
    return x + 1


def broken(x: Tensor) -> Tensor:
    raise RuntimeError("out of\n  luck")


def _dies(x: Tensor) -> Tensor:
    os._exit(3)


def quick(bench: Bench) -> Iterator[Record]:
    yield from measured(bench, case({"a": same, "b": same}))


def cut(bench: Bench) -> Iterator[Record]:
    yield Record("cut", "one", "a", figure=Figure(1.0))
    raise OSError("the disk is full")


def dying(bench: Bench) -> Iterator[Record]:
    """A case, one of which a candidate ends the process, and one after it."""
    yield from measured(bench, Case("first", "case", lambda: (torch.ones(4),), {"a": same}))
    yield from measured(bench, case({"a": same, "b": _dies, "c": same}, graphs=True))
    yield Record("last", "case", f"{len(bench.found)}", figure=Figure(1.0))


def uncaptured(bench: Bench) -> Iterator[Record]:
    """A candidate asks for a value on the host, which no graph can."""

    def asks(x: Tensor) -> Tensor:
        return x + float(x[0])

    candidates = {"a": same, "b": asks, "c": same}
    inputs = partial(torch.ones, 4, device=bench.device)
    yield from measured(bench, Case("table", "case", lambda: (inputs(),), candidates, graphs=True))


def look(bench: Bench) -> Iterator[Record]:
    assert "### Table" in Path(os.environ[PAGE]).read_text()
    yield from ()


def ask(bench: Bench) -> Iterator[Record]:
    with Path(os.environ[LEFT]).open("a") as file:
        print(bench.deadline - time.monotonic(), file=file)
    yield from ()


def silent(send: Send) -> None:
    send("one")
    time.sleep(600)
