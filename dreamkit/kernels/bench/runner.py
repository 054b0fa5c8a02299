"""Runs sections of a benchmark within a time, and writes what each has found as soon as it is through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from dreamkit.errors import DreamkitError
from dreamkit.kernels import LEAST_CAPABILITY, SWITCH, usable
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.harness import Bench
from dreamkit.kernels.bench.isolated import Broken, Send, Stopped, sent
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.measurements import (
    OUT_OF_TIME,
    Cell,
    Record,
    Records,
    Targets,
    no_targets,
)
from dreamkit.kernels.bench.results_page import Results, make_folder, show, write

SECONDS = 0.05  # of measuring a candidate, in each of its two rounds
GRACE = 10.0  # seconds after the end of all in which a section may end by itself
SILENCE = 120.0  # seconds in which nothing is begun or found, after which a process is taken for hung


@dataclass(frozen=True)
class Section:
    """A part of a benchmark; `share` weighs it against the others, and what one leaves of its time the next ones get.

    `run` yields records as they are measured, in a process of its own, so it is a function that a module has. What is
    in `Bench.found` it does not measure again.
    """

    name: str
    share: float
    run: Callable[[Bench], Iterator[Record]]
    targets: Targets = no_targets


def benchmark_device(name: str, small: bool) -> torch.device:
    """The device by its name.

    Raises:
        DreamkitError: it is not there, or nothing can be measured on it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DreamkitError(f"--device {name} is none that torch knows; give cuda or cpu") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DreamkitError(
            "no GPU was found, and times are measured on one; --device cpu --small tries the program in miniature"
        )
    if device.type != "cuda":
        if not small:
            raise DreamkitError(
                f"on {device.type} nothing is measured; add --small, which tries the program in miniature, or give "
                "--device cuda"
            )
        return device
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise DreamkitError(f"--device {name} is not there; torch finds {count}, cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def run(
    sections: Sequence[Section], device: torch.device, *, small: bool, seconds: float, out: Path
) -> Results:
    """Runs the sections and ends within `seconds`, at the end of a case or a little later.

    Writes `out`/results.json and `out`/benchmarks.md after each section.

    Raises:
        DreamkitError: nothing can be written to `out`, or measured on the device.
    """
    end = time.monotonic() + seconds
    console = Console(highlight=False, markup=False)
    make_folder(out)
    machine = _machine(device, small)
    results = Results(machine, trial=small)
    for number, section in enumerate(sections):
        left = end - time.monotonic()
        share = section.share / sum(other.share for other in sections[number:])
        found = _found(section, device, machine, small, time.monotonic() + share * left, end + GRACE)
        results.records += found
        results.verdicts += section.targets(found)
        write(results, out)
        show(results, found, console)
    return results


def _machine(device: torch.device, small: bool) -> Machine:
    try:
        (machine,) = sent(measure_machine, device, small, until=math.inf, silence=SILENCE)
    except Broken as error:
        raise DreamkitError(f"on {device} nothing can be measured: {error}") from error
    assert isinstance(machine, Machine)
    return machine


def measure_machine(send: Send, device: torch.device, small: bool) -> None:
    """Sends it.

    Raises:
        DreamkitError: kernels would not run on it.
    """
    clock = _clock(device, small)
    if not small and not usable(torch.empty(0, device=device)):
        raise DreamkitError(
            f"no kernel would run, only its reference; {SWITCH} must not be 0, and triton, a C compiler and a GPU of "
            f"compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or newer are needed"
        )
    send(Machine.measured(clock, small))


def _found(
    section: Section, device: torch.device, machine: Machine, small: bool, deadline: float, last: float
) -> Records:
    """What a section finds, going on in another process where one breaks; it may begin cases until its `deadline`."""
    found, failures = Records(), dict[Cell, str]()
    whole = doing = Cell(section.name, "-", "-")
    while time.monotonic() < deadline:
        arguments = (section.run, device, machine, small, deadline, found, failures)
        try:
            for message in sent(_measure, *arguments, until=last, silence=SILENCE):
                if isinstance(message, Record):
                    found.append(message)
                else:
                    doing = message
            return found
        except Stopped:
            break
        except Broken as error:
            if (
                doing == whole or doing in failures or doing in found.cells
            ):  # so it was none of the candidates
                found.append(Record(*whole, problem=str(error), failed=True))
                return found
            failures[doing] = str(error)
    for cell, problem in failures.items():
        if cell not in found.cells:
            found.append(Record(*cell, problem=problem, failed=True))
    found.append(Record(*whole, problem=OUT_OF_TIME))
    return found


def _measure(
    send: Send,
    measure: Callable[[Bench], Iterator[Record]],
    device: torch.device,
    machine: Machine,
    small: bool,
    deadline: float,
    found: Records,
    failures: Mapping[Cell, str],
) -> None:
    bench = Bench(_clock(device, small), machine, small, deadline, found, failures, begun=send)
    for record in measure(bench):
        found.append(record)
        send(record)


def _clock(device: torch.device, small: bool) -> Clock:
    return Clock(device, 0.0 if small else SECONDS)
