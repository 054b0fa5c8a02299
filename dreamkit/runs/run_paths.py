"""The names of the files in the folder of a run. This module loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

LOG: Final = "log.jsonl"
HELD_OUT: Final = "held_out.jsonl"  # losses on held-out data
SPIKES: Final = "spikes.jsonl"
RECORD: Final = "run.json"
PAGE: Final = "index.html"
DRAWINGS: Final = "drawings"  # folder of the folders `step-N` of images
CHECKPOINT: Final = "checkpoint"  # folder of the trained model
EMA_CHECKPOINT: Final = "checkpoint-ema"  # of the averages of its weights
RESUME_POINTS: Final = "checkpoints"  # folder of the folders `step-N`
STEP: Final = "step-"
STATE: Final = "trainer"  # folder of the run's state in a resume point
STATE_FILE: Final = "state.json"


def resume_point(out: Path, step: int) -> Path:
    """Return the folder of the resume point after `step`."""
    return out / RESUME_POINTS / f"{STEP}{step}"


def resume_points(out: Path) -> list[Path]:
    """Return the resume points of a run, oldest first."""
    return step_folders(out / RESUME_POINTS)


def step_folders(folder: Path) -> list[Path]:
    """Return the folders `step-N` in a folder, which may be missing, in the order of their steps."""
    paths = folder.glob(f"{STEP}*")
    return sorted((path for path in paths if path.name.removeprefix(STEP).isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """Return the step N of a folder `step-N`."""
    return int(folder.name.removeprefix(STEP))
