"""The task `digits-demo`: trains the shipped recipes stage by stage, measures the model, and writes a report."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dreamkit import (
    DreamModel,
    Registry,
    Task,
    TrainingError,
    load_recipe,
    save_checkpoint,
    train_recipe,
    write_text,
)
from dreamkit_digits.curves import Stage
from dreamkit_digits.demo_folder import unfinished
from dreamkit_digits.measure import TARGETS, Measured, measure, total
from dreamkit_digits.report import Run, report

STAGES: Mapping[str, str] = {
    "digits/stage1": "I: align",
    "digits/stage2": "II: interleaved documents",
    "digits/stage3": "III: instructions",
}
"""The recipes in order, with the titles of their stages."""
MOST_MEMORY = 3 * 10**9  # bytes
CHECKPOINT, METRICS, REPORT = "checkpoint", "metrics.json", "report.html"
WRITTEN = (*(name.rpartition("/")[2] for name in STAGES), CHECKPOINT, METRICS, REPORT)


class DigitsDemo(Task):
    """The demo. It writes `checkpoint/`, `metrics.json`, `report.html`, and a folder for each stage.

    An error or interrupt before its end removes them all, and a new demo removes those of a killed one.
    """

    def run(self, out: Path, *, seed: int = 0) -> Mapping[str, float]:
        start = time.monotonic()
        out = Path(out).absolute()
        with unfinished(out, WRITTEN), one_thread():
            model, stages = train(out, seed)
            save_checkpoint(model, out / CHECKPOINT)
            measured = measure_with_bar(model, seed)
            figures = {
                **measured.figures(),
                "seed": seed,
                "seconds": round(time.monotonic() - start, 1),
                "peak_memory_bytes": peak_memory(),
            }
            write(Run(stages, measured, figures, out / CHECKPOINT), out)
        check(figures, out)
        return figures


def write(run: Run, out: Path) -> None:
    """Write figures and report to `out`."""
    write_text(out / METRICS, json.dumps(run.figures, indent=2) + "\n")
    write_text(out / REPORT, report(run))


def check(figures: Mapping[str, float], out: Path) -> None:
    """Compare figures with their targets.

    Raises:
        TrainingError: a figure below its target, or a peak of memory above `MOST_MEMORY`.
    """
    missed = [
        f"{name}: expected at least {target:.0%}, got {figures[name]:.1%}"
        for name, target in TARGETS.items()
        if figures[name] < target
    ]
    peak = figures["peak_memory_bytes"]
    # The libraries of a CUDA device alone may take as much.
    if peak > MOST_MEMORY and not torch.cuda.is_available():
        missed.append(
            f"peak_memory_bytes: expected at most {MOST_MEMORY / 1e9:.0f} GB, got {peak / 1e9:.1f} GB"
        )
    if missed:
        raise TrainingError(f"{'; '.join(missed)}; see {out / REPORT}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, so that the figures are the same on any number of cores.

    On matrices this small, threads also take longer to wait for each other than to compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(out: Path, seed: int) -> tuple[DreamModel, list[Stage]]:
    """Train each stage from the checkpoint of the stage before it, as with `dreamkit train`."""
    registry, console = Registry.load(), Console(stderr=True)
    model, stages = None, []
    init: list[str] = []
    for name, title in STAGES.items():
        console.print(f"stage {title} ({name})", style="bold", highlight=False)
        recipe = load_recipe(name, [f"train.seed={seed}", *init], registry)
        result = train_recipe(recipe, registry, out / name.rpartition("/")[2])
        init = [f"init={json.dumps(str(result.checkpoint))}"]
        model = result.model
        stages.append(Stage(title, result.log))
    assert model is not None, "there are stages"
    return model, stages


def measure_with_bar(model: DreamModel, seed: int) -> Measured:
    """Measure, with a progress bar on standard error."""
    with Progress(
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        bar = progress.add_task("", total=total())
        return measure(model, seed, lambda documents: progress.advance(bar, documents))


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes
