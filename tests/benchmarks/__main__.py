"""Measure dreamkit's kernels, a training step and drawing beside eager PyTorch and torch.compile.

Prints a line about the machine, then a Markdown table. Exits with 1 if a candidate failed.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from torch.utils.benchmark import select_unit

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from benchmarks import assemble_embeddings, drawing, label_loss, query_projection, race, training_step
from benchmarks.measure import Case, Rates, Row, describe, measure, measure_rates
from dreamkit.kernels import HAS_TRITON, kernel_status

BENCHMARKS: dict[str, Callable[[torch.device, bool], Iterator[Case]]] = {
    "query_projection": query_projection.cases,
    "assemble_embeddings": assemble_embeddings.cases,
    "label_loss": label_loss.cases,
    "training_step": training_step.cases,
    "race": race.cases,
    "drawing": drawing.cases,
}
HEAD = ("case", "candidate", "time", "speed-up", "work", "of the machine's rate")


def main() -> int:
    """Run the benchmarks that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, help="run this benchmark; may be repeated"
    )
    parser.add_argument(
        "--device", default="cuda", help="device to measure, such as cuda:1 or cpu (default: cuda)"
    )
    parser.add_argument(
        "--small", action="store_true", help="try everything in small sizes, without a meaningful time"
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("no GPU found; add --device cpu --small to try everything in small sizes")
        torch.cuda.set_device(device)  # do_bench measures the current device
    # torch.compile reads the version of torch through a cache of diffusers, which is harmless
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`", UserWarning)
    rates = measure_rates(device, arguments.small)
    print(machine_line(device, rates))
    if arguments.small:
        print("Miniature sizes: the benchmarks run, but the times mean nothing.")
    print(f"\n{markdown(HEAD)}\n{markdown(['---'] * len(HEAD))}")
    failed = False
    for name in arguments.only or BENCHMARKS:
        for case in BENCHMARKS[name](device, arguments.small):
            try:
                rows, flops = measure(case, device, arguments.small)
            except Exception as error:  # its inputs could not be made
                rows, flops = [Row(case.name, "all", failure=describe(error))], 0.0
            for row in rows:
                print(markdown(table_cells(row, rows[0], case.least_bytes, flops, rates)), flush=True)
            failed |= any(row.failure for row in rows)
    return int(failed)


def machine_line(device: torch.device, rates: Rates) -> str:
    """Return a line with the device, the versions, whether kernels are used, and the measured rates."""
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else f"CPU ({platform.machine()})"
    triton = import_module("triton").__version__ if HAS_TRITON else "missing"
    kernels = kernel_status(device) if is_cuda else "fused kernels: off, no GPU"
    speed = (
        f"copies {rates.bandwidth / 1e9:.3g} GB/s, multiplies {rates.matmul / 1e12:.3g} TFLOP/s in bfloat16"
    )
    return f"Machine: {name}, torch {torch.__version__}, triton {triton}; {kernels}; {speed}."


def table_cells(row: Row, first: Row, least_bytes: float, flops: float, rates: Rates) -> list[str]:
    """Return the cells of a row; `first` is the row of the case's reference.

    The work is bytes or FLOP: whichever takes longer at the machine's rate.
    """
    if row.failure:
        return [row.case, row.candidate, f"failed: {row.failure}", "", "", ""]
    seconds, spread = median(row.seconds), max(row.seconds) - min(row.seconds)
    name, unit = select_unit(seconds)
    moving, computing = least_bytes / rates.bandwidth, flops / rates.matmul
    return [
        row.case,
        row.candidate,
        f"{seconds / unit:.3g} ± {spread / unit:.2g} {name}",
        "" if row is first or first.failure else f"{median(first.seconds) / seconds:.2f} x",
        f"{least_bytes / 1e6:.4g} MB" if moving >= computing else f"{flops / 1e9:.4g} GFLOP",
        f"{max(moving, computing) / seconds:.0%}",
    ]


def markdown(cells: list[str] | tuple[str, ...]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
