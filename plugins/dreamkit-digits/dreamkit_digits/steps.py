"""Measure drawings against denoising steps, for each scheduler: `python -m dreamkit_digits.steps CHECKPOINT`.

Accuracy is the share of images in which the judge sees the right digit. Distance is the Frechet distance
(arXiv 1706.08500) between drawn and real training digits, in the 64 grey levels that the judge sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dreamkit import DreamModel, count, load_checkpoint, write_text
from dreamkit_digits import digits, phrases
from dreamkit_digits.judge import Judge, grey_levels
from dreamkit_digits.step_chart import chart

STEPS = (2, 3, 5, 10, 15, 20, 50, 150)
IMAGES = 25  # of each digit: the standard error of an accuracy of 90 % is 2 %


class Point(NamedTuple):
    """Accuracy (0 to 1) and distance of the images of one setting, and the distance's standard error."""

    accuracy: float
    distance: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} %, {self.distance:.1f} ± {self.error:.1f}"


Points = Mapping[str, Mapping[int, Point]]
"""The point of each scheduler and number of steps."""


@torch.no_grad()
def draw(model: DreamModel, labels: list[int], counts: Sequence[int]) -> Iterator[tuple[str, int, Any]]:
    """Yield scheduler, steps and images (N, H, W, 3) uint8 of N `labels`, always drawn from the same noise."""
    decoder = model.image_decoder
    assert model.recipe is not None, "a loaded checkpoint has a recipe"
    states = model.dream_states([*(phrases.naming(digit) for digit in range(10)), ""])
    positive, negative = (model.condition(states[rows]) for rows in (labels, [10] * len(labels)))
    w = model.recipe.generation.guidance
    for name in decoder.spec.schedulers or ():
        for steps in counts:
            noise = torch.Generator().manual_seed(0)
            images = decoder.draw(
                positive, negative, scheduler=name, steps=steps, guidance=w, generators=noise
            )
            yield name, steps, (images.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()


def measure(pixels: np.ndarray, labels: list[int], judge: Judge) -> Point:
    """Measure images (N, H, W, 3) of N `labels`. The error is that of resampled images."""
    real, drawn = grey_levels(digits.load("train").pixels), grey_levels(pixels)
    random = np.random.default_rng(0)
    resampled = [frechet(random.choice(drawn, len(drawn)), real) for _ in range(50)]
    return Point(judge.accuracy(pixels, labels), frechet(drawn, real), float(np.std(resampled)))


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Frechet distance of two sets of vectors, (N, D) and (M, D), as those of normal distributions."""
    a, b = np.cov(one.T), np.cov(other.T)
    roots = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0))
    return float(np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(a + b) - 2 * roots.sum())


def table(points: Points) -> str:
    """Return a Markdown table; a row is a number of steps, a column a scheduler."""
    head = ["steps", *(f"`{name}`" for name in points)]
    rows = [[str(n), *(str(line[n]) for line in points.values())] for n in next(iter(points.values()))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Measure a checkpoint of the demo, print the table, write the chart."""
    parser = argparse.ArgumentParser(prog="python -m dreamkit_digits.steps", description=__doc__)
    parser.add_argument("checkpoint", help="the checkpoint of `dreamkit demo`")
    parser.add_argument(
        "--chart", type=Path, default=Path("steps.svg"), help="chart to write (default: steps.svg)"
    )
    arguments = parser.parse_args()
    model, _ = load_checkpoint(arguments.checkpoint)
    judge, labels = Judge.train(), [digit for digit in range(10) for _ in range(IMAGES)]
    points: dict[str, dict[int, Point]] = {}
    for scheduler, steps, pixels in draw(model, labels, STEPS):
        point = points.setdefault(scheduler, {})[steps] = measure(pixels, labels, judge)
        print(f"{scheduler}, {count(steps, 'step')}: {point}", flush=True)
    write_text(arguments.chart, chart(points))
    print(f"\n{table(points)}")


if __name__ == "__main__":
    main()
