"""Learning rates: a function of the recipe and the step, without a state."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from dreamkit.recipe.sections import TrainSection

DECAY = 0.2  # share of the steps, as in arXiv 2405.18392


def set_learning_rates(optimizer: Optimizer, train: TrainSection, step: int) -> dict[str, float]:
    """Set the rate of each group for the step after `step` finished ones; return them by their names in the log.

    `learning_rate` is that of `train`. A section of `train.groups` has its `match` behind the name.
    """
    rates = {"learning_rate": train.learning_rate * factor(train, train.in_steps(train.warmup), step)}
    for group in optimizer.param_groups:
        group["lr"] = group["learning_rate"] * factor(train, group["warmup"], step)
        if group["match"]:
            rates[f"learning_rate.{group['match']}"] = group["lr"]
    return rates


def factor(train: TrainSection, warmup: int, step: int) -> float:
    """Return the factor (0 to 1) of the learning rate after `step` finished steps, with this warm-up in steps.

    It rises in a line, then falls to 0 at the end of the run: `cosine` (arXiv 1608.03983, without restarts), `linear`,
    or `wsd` (warm-up, stable, decay; arXiv 2404.06395), whose end is 1 minus a square root (arXiv 2405.18392).
    """
    if step < warmup:
        return step / warmup
    start = _constant_until(train, warmup)
    if step < start or train.schedule == "constant":
        return 1.0
    progress = (step - start) / max(1, train.steps - start)
    if train.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if train.schedule == "linear":
        return max(0.0, (train.steps - step) / max(1, train.steps - start))
    return max(0.0, 1.0 - math.sqrt(progress))


def has_same_rates(then: TrainSection, now: TrainSection, step: int) -> bool:
    """Return True if two sections that differ in `steps` have the same learning rates in the first `step` steps."""
    warmups = [
        [
            train.in_steps(train.warmup if each is None else each)
            for each in (None, *(group.warmup for group in train.groups))
        ]
        for train in (then, now)
    ]
    starts = [
        _constant_until(train, warmup)
        for train, own in zip((then, now), warmups, strict=True)
        for warmup in own
    ]
    return warmups[0] == warmups[1] and step <= min(starts)


def _constant_until(train: TrainSection, warmup: int) -> int:
    """Return the number of steps until the rate begins to fall, after this warm-up."""
    if train.schedule == "constant":
        return max(warmup, train.steps)
    if train.schedule == "wsd":
        decay = train.in_steps(DECAY if train.decay is None else train.decay)
        return max(warmup, train.steps - decay)
    return warmup
