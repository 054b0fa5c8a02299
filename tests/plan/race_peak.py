"""Print the peak memory in bytes of a training step of the race: python race_peak.py SHAPE.

It is the growth of the process's largest resident set (`ru_maxrss`) since before the model is built, after two steps.
The libraries are loaded before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

import torch

import tiny
from benchmarks import race

UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


def main(shape: race.Shape) -> int:
    """Return the peak of two steps; the optimizer has its states in the second one."""
    tiny.model()
    before = getrusage(RUSAGE_SELF).ru_maxrss
    step = race.step(shape, torch.device("cpu"))
    for _ in range(2):
        step.run(step.model, step.packed)
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) * UNIT


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(race.SHAPES[int(sys.argv[1])]))
