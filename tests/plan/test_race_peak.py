"""The peak memory of the race's steps: planned, and measured as the resident set of a process."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import race
from dreamkit.plan.plan import plan
from dreamkit.registry.registry import Registry


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(race.SHAPES)), ids=map(str, race.SHAPES))
def test_the_plan_is_close_to_the_resident_memory_of_a_step(number: int) -> None:
    shape = race.SHAPES[number]
    script = Path(__file__).with_name("race_peak.py")
    process = subprocess.run([sys.executable, str(script), str(number)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    planned = plan(
        race.recipe(shape), Registry.load(), make_batch=lambda make: make(race.documents(shape)), device="cpu"
    ).memory.peak
    print(f"{shape}: {planned / 1e9:.2f} of {int(process.stdout) / 1e9:.2f} GB")
    assert abs(planned / int(process.stdout) - 1) <= 0.15
