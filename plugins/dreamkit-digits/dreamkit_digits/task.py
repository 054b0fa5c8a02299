"""The task `digits-demo`: trains the shipped recipes stage by stage, measures, and writes a report."""

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

from dreamkit import DreamModel, Registry, Task, TrainingError, load_recipe, save_checkpoint, train_recipe
from dreamkit_digits.curves import Stage
from dreamkit_digits.measure import TARGETS, Measured, measure, total
from dreamkit_digits.report import Run, report

STAGES: Mapping[str, str] = {
    "digits/stage1": "I: align",
    "digits/stage2": "II: interleaved documents",
    "digits/stage3": "III: instructions",
}
"""The recipes, in order, and what each stage is called."""
MOST_MEMORY = 3 * 10**9  # bytes
CHECKPOINT, METRICS, REPORT = "checkpoint", "metrics.json", "report.html"


class DigitsDemo(Task):
    """Writes `checkpoint/`, `metrics.json` and `report.html`, and beside them a folder a stage."""

    def run(self, out: Path, *, seed: int = 0) -> Mapping[str, float]:
        begin = time.monotonic()
        out = Path(out).absolute()
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            what = "is not empty" if out.is_dir() else "is a file"
            raise TrainingError(f"{out} {what}; remove it, or name another folder by --out")
        with one_thread():
            model, stages = train(out, seed)
            save_checkpoint(model, out / CHECKPOINT)
            measured = measured_with_bar(model, seed)
        figures = {
            **measured.figures(),
            "seed": seed,
            "seconds": round(time.monotonic() - begin, 1),
            "peak_memory_bytes": peak_memory(),
        }
        finish(Run(stages, measured, figures, out / CHECKPOINT), out)
        return figures


def finish(run: Run, out: Path) -> None:
    """Writes figures and report to `out`.

    Raises:
        TrainingError: afterwards, a figure below its target, or more memory than is promised.
    """
    (out / METRICS).write_text(json.dumps(run.figures, indent=2) + "\n", encoding="utf-8")
    (out / REPORT).write_text(report(run), encoding="utf-8")
    missed = [
        f"{name} is {run.figures[name]:.1%}, but at least {target:.0%} is promised"
        for name, target in TARGETS.items()
        if run.figures[name] < target
    ]
    peak = run.figures["peak_memory_bytes"]
    # With a CUDA device its libraries alone may take as much.
    if peak > MOST_MEMORY and not torch.cuda.is_available():
        missed.append(
            f"peak_memory_bytes is {peak / 1e9:.1f} GB, but at most {MOST_MEMORY / 1e9:.0f} GB is promised"
        )
    if missed:
        raise TrainingError(f"{'; '.join(missed)}; see {out / REPORT}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute with one thread, so that the figures are the same on any number of cores.

    Its threads also wait for each other busily, which on matrices this small and on cores that others use takes
    longer than the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(out: Path, seed: int) -> tuple[DreamModel, list[Stage]]:
    """Runs every stage from the checkpoint of the one before, as `dreamkit train` does by hand."""
    registry, console = Registry.load(), Console(stderr=True)
    model, stages = None, []
    start: list[str] = []
    for name, title in STAGES.items():
        console.print(f"stage {title} ({name})", style="bold", highlight=False)
        recipe = load_recipe(name, [f"train.seed={seed}", *start], registry)
        result = train_recipe(recipe, registry, out / name.rpartition("/")[2])
        start = [f"init={json.dumps(str(result.checkpoint))}"]
        model = result.model
        stages.append(Stage(title, result.log))
    assert model is not None, "there are stages"
    return model, stages


def measured_with_bar(model: DreamModel, seed: int) -> Measured:
    """Measures, with a progress bar on standard error."""
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
    """The most memory this process ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes
