"""Charts of the curves of one run, or of several runs together. This module loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from dreamkit.pages.chart import Line, chart
from dreamkit.pages.thinning import ThinnedLine
from dreamkit.runs.run_content import RunContent

# Title and explanation by key; other keys follow in the order of the log, with their own names.
KNOWN: Final[Mapping[str, tuple[str, str]]] = {
    "loss": ("Loss", "weighted sum of both"),
    "lm": ("Text loss", "cross entropy of a token"),
    "denoising": ("Image loss", "error of the decoder's prediction"),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    "steps_per_second": ("Steps per second", ""),
    "tokens_per_second": ("Tokens per second", ""),
    "images_per_second": ("Images per second", ""),
    "memory": ("Memory", "peak bytes of a process"),
    "data_wait": ("Waiting for data", "share of the time, 0 to 1"),
}
HELD_OUT: Final = "held-out"


def run_charts(content: RunContent) -> list[str]:
    """Return the charts of a run: keys with one first word, such as `grad_norm.PART`, share one."""
    grouped: dict[str, list[Line]] = {}
    for lines, is_held_out in ((content.log.lines, False), (content.held_out.lines, True)):
        for key, line in lines.items():
            if not is_always_zero(line):
                grouped.setdefault(_first_word(key), []).append(
                    Line(_name(key, is_held_out), line, is_held_out)
                )
    return [chart(*about(group), _named(group, grouped[group])) for group in ordered(grouped)]


def always_zero(content: RunContent) -> list[str]:
    """Return the keys of the log whose values are all 0, which have no chart."""
    return [key for key, line in content.log.lines.items() if is_always_zero(line)]


def is_always_zero(line: ThinnedLine) -> bool:
    """Return True if every value is 0."""
    return all(y == 0 for _, y in line.points())


def about(key: str) -> tuple[str, str]:
    """Return title and explanation of a key."""
    return KNOWN.get(key, (key, ""))


def ordered(keys: Iterable[str]) -> list[str]:
    """Return keys in the order of their charts."""
    keys = [*keys]
    return [*(key for key in KNOWN if key in keys), *(key for key in keys if key not in KNOWN)]


def _first_word(key: str) -> str:
    return key.partition(".")[0]


def _name(key: str, is_held_out: bool) -> str:
    rest = key.partition(".")[2]
    return f"{HELD_OUT} {rest}".rstrip() if is_held_out else rest


def _named(group: str, lines: Sequence[Line]) -> list[Line]:
    """Return the lines of a chart; among others, the one of the group itself is named, too."""
    if len(lines) == 1:
        return [*lines]
    own = "training" if any(line.has_markers for line in lines) else "all"
    return [line if line.name else Line(own, line.line) for line in lines]
