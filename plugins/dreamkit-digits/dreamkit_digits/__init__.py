"""dreamkit's embedded default: real handwriting, tiny parts, recipes, and a demo with measured results."""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit import Component, hookimpl


@hookimpl
def dreamkit_datasets() -> Sequence[Component]:
    return (
        Component(
            "digits",
            "dreamkit_digits.documents:Digits",
            "documents of real handwritten digits: reading, drawing, counting, sums and chat",
        ),
    )


@hookimpl
def dreamkit_tasks() -> Sequence[Component]:
    return (
        Component(
            "digits-demo",
            "dreamkit_digits.task:DigitsDemo",
            "trains on handwritten digits in three stages, measures, and writes a report",
        ),
    )


@hookimpl
def dreamkit_recipes() -> str:
    return "dreamkit_digits:recipes"
