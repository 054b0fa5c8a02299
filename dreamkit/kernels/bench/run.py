"""Runs sections of a benchmark within a time, and writes what each has found as soon as it is through."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from dreamkit.errors import DreamkitError
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.harness import Bench
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.bench.records import OUT_OF_TIME, Record, Records, Targets, Verdict, no_targets
from dreamkit.kernels.bench.report import show, write

SECONDS = 0.05  # of measuring a candidate, in each of its two rounds
GRACE = 10.0  # seconds after its end in which a section may end by itself


@dataclass(frozen=True)
class Section:
    """A part of a benchmark; `share` weighs it against the others, and what one leaves of its time the next ones get.

    `run` yields records as they are measured. It asks `Bench.has_time` where it begins something long.
    """

    name: str
    share: float
    run: Callable[[Bench], Iterator[Record]]
    targets: Targets = no_targets


@dataclass
class Results:
    """What was found so far, on which machine; `trial`: in miniature, so that no time means anything."""

    machine: Machine
    trial: bool
    records: Records = field(default_factory=Records)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return any(record.failed for record in self.records)


class _Stopped(BaseException):
    """The time is up; no error of a candidate."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """What takes longer within is stopped, wherever Python next has a say."""

    def stop(*_: object) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    if device.type != "cuda" and not small:
        raise DreamkitError(
            f"on {device.type} nothing is measured; add --small, which tries the program in miniature, or give "
            "--device cuda"
        )
    return device


def run(
    sections: Sequence[Section], device: torch.device, *, small: bool, seconds: float, out: Path
) -> Results:
    """Runs the sections and ends within `seconds`, at the end of a case or a little later.

    Writes `out`/results.json and `out`/benchmarks.md after each section.
    """
    end = time.monotonic() + seconds
    console = Console(highlight=False, markup=False)
    clock = Clock(device, 0.0 if small else SECONDS)
    machine = Machine.measured(clock, small)
    results = Results(machine, trial=small)
    for number, section in enumerate(sections):
        left = end - time.monotonic()
        share = section.share / sum(other.share for other in sections[number:])
        bench = Bench(clock, machine, small, deadline=time.monotonic() + share * left)
        found = Records()
        try:
            with _stopped_after(max(0.0, left) + GRACE):
                for record in section.run(bench):
                    found.append(record)
        except _Stopped:
            found.append(Record(section.name, "-", "-", problem=OUT_OF_TIME))
        except Exception as error:  # of one section, which leaves the others to run
            console.print(traceback.format_exc())
            found.append(
                Record(section.name, "-", "-", problem=f"{type(error).__name__}: {error}", failed=True)
            )
        results.records += found
        results.verdicts += section.targets(found)
        clock.free()
        write(results, out)
        show(results, found, console)
    return results
