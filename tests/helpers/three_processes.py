"""Measured runs of three processes, in every kind of layout.

`torchrun` runs this file in each process of `test_three_processes.py`: `three_processes.py FOLDER`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import layouts
from dreamkit.distributed import join


@dataclass(frozen=True)
class MeasuredRun:
    """A run on the digits of stage II, or on the tiny documents, by a small LLaMA both times.

    Attributes:
        name: name of its folder.
        precision: of computing, which decides the number of steps.
        layout: settings of `train` that change no loss.
        is_digits: flag: it trains on the digits.
    """

    name: str
    precision: str
    layout: dict[str, Any]
    is_digits: bool = False

    def train(self, out: Path, **layout: Any) -> None:
        """Train it into the folder `out`, in the processes that call this method, with another `layout`."""
        if self.is_digits:
            layouts.digits_run(out, precision=self.precision, **layout)
        else:
            layouts.measured_run(out, self.precision, **layout)


RUNS = [  # every two of data, precision and packing occur together; 50 steps in float64 take the time
    MeasuredRun("float32", "float32", {}),
    MeasuredRun("float64, apart", "float64", {"packing": False}),
    MeasuredRun("digits, float32, apart", "float32", {"packing": False, "micro_batch": 1}, is_digits=True),
    MeasuredRun("digits, float64", "float64", {}, is_digits=True),
]
AGAIN = RUNS[0]  # trained twice
AGAIN_FOLDER = "again"


def main(folder: Path) -> None:
    join()
    for run in RUNS:
        run.train(folder / run.name, **run.layout)
    AGAIN.train(folder / AGAIN_FOLDER, **AGAIN.layout)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
