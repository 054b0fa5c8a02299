"""The documents that cause a loss or gradient that is not finite, in the words of an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dreamkit.data.samples import Samples
from dreamkit.data.sequence import Sequence
from dreamkit.training.loss_monitor import NotFinite

MAX_NAMES: Final = 10  # documents in one error


def blame(problem: NotFinite, samples: Samples, is_finite: Callable[[Sequence], bool]) -> str:
    """Return the error message, which names the documents that are not finite alone, or else all suspects.

    `is_finite` computes the loss and gradient of each suspect alone: documents of a packed row can make each other's
    losses NaN, and gradients add up.
    """
    suspects, bad = [], []
    for place in problem.documents:
        sequence = samples[place]
        suspects.append(sequence.name)
        if not is_finite(sequence):
            bad.append(sequence.name)
    names = list(dict.fromkeys(bad or suspects))
    listed = ", ".join(f"'{name}'" for name in names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    exception, fix = (
        ("", "check that document, or ") if bad else (", though each of its documents is finite alone", "")
    )
    return (
        f"step {problem.step}: the {problem.quantity} is not finite{exception}: {listed}{more}; "
        f"{fix}lower train.learning_rate or train.max_grad_norm"
    )
