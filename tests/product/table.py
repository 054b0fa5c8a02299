"""The table of results, as the page docs/parts.md."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry
from product.parts import Combination, Parts

PASSED, FAILED = "●", "✗"

HEAD = """# The parts, and all their combinations

This page is written by `python tests/product > docs/parts.md`, which tries every combination of these parts, at
miniature sizes and with random weights.
"""

TRIED = """## {count} combinations

Of each vision encoder, language model, condition projector and image decoder together: the recipe checks and builds,
one training step lowers the loss on its own batch, gradients reach exactly what is trained, a checkpoint saves and
loads to equal outputs, and generation writes text and draws an image. {passed} of {count} do.

In a cell, one sign for each condition projector, in this order: {projectors}. {good} passed,
{bad} failed.
"""


def page(parts: Parts, results: Mapping[Combination, str], registry: Registry) -> str:
    """The page; `results` are the reasons for which combinations failed, empty where they passed."""
    passed = sum(not reason for reason in results.values())
    tried = TRIED.format(
        count=len(results),
        passed=passed,
        projectors=", ".join(parts["condition_projector"]),
        good=PASSED,
        bad=FAILED,
    )
    failed = [f"- {combination}: {reason}" for combination, reason in results.items() if reason]
    sections = [HEAD, *components(registry), tried, matrix(parts, results)]
    if failed:
        sections.append("## Failed\n\n" + "\n".join(failed) + "\n")
    return "\n".join(sections)


def components(registry: Registry) -> list[str]:
    """A table of what is registered of each kind that is combined."""
    tables = []
    for kind in ("vision_encoder", "language_model", "projector", "image_decoder"):
        rows = [
            f"| `{name}` | {registered.distribution} | {registered.component.summary} |"
            for name, registered in sorted(registry.components(kind).items())
        ]
        title = f"{KINDS[kind].hook.removeprefix('dreamkit_').replace('_', ' ').capitalize()}"
        tables.append("\n".join([f"## {title}\n", "| name | distribution | |", "|---|---|---|", *rows, ""]))
    return tables


def matrix(parts: Parts, results: Mapping[Combination, str]) -> str:
    encoders, languages, projectors, decoders = parts.values()
    lines = [
        "| vision encoder | language model | " + " | ".join(decoders) + " |",
        "|---|---|" + "---|" * len(decoders),
    ]
    for encoder, language in product(encoders, languages):
        cells = [
            "".join(
                FAILED if results[Combination(encoder, language, projector, decoder)] else PASSED
                for projector in projectors
            )
            for decoder in decoders
        ]
        lines.append(f"| {encoder} | {language} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
