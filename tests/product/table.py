"""The page docs/parts.md: the parts and the table of results."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry
from product.parts import Combination, Parts

PASSED, FAILED = "●", "✗"

HEAD = """# The parts, and all their combinations

Look up here the name of each part for a recipe, and which combinations of parts are tested.

`python tests/product > docs/parts.md` writes this page. It tries every combination of tiny parts with random weights.
"""

TRIED = """## {count} combinations

A combination has one vision encoder, language model, condition projector and image decoder. {passed} of {count} pass
all of these tests:

- The recipe passes `dreamkit check`, and the model is built.
- One training step lowers the loss of its own batch.
- Gradients reach exactly the trained parameters.
- A saved and loaded checkpoint gives equal outputs.
- Generation writes text and draws an image.

Each cell has one sign for each condition projector, in this order: {projectors}.
{good} means passed, {bad} failed.
"""


def page(parts: Parts, results: Mapping[Combination, str], registry: Registry) -> str:
    """Return the page; `results` has the error of each combination, "" if it passed."""
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
    """Return a table of the registered components of each kind."""
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
