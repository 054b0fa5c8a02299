"""A chart of accuracy and distance against denoising steps as SVG: two panels, a line a scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

WIDTH, HEIGHT, PANEL = 860, 300, 380
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 62
COLOURS = ("#2f6fce", "#b45f06", "#2d7d46", "#8250df", "#cf222e")
DASHES = ("", "8 3", "2 3", "8 3 2 3", "12 5")  # lines may cover each other
STYLE = """\
text { font: 12.5px system-ui, "DejaVu Sans", sans-serif; fill: #57606a; text-anchor: middle; }
.left { text-anchor: start; } .right { text-anchor: end; } .grid { stroke: #8c959f; stroke-opacity: 0.3; }
.line { fill: none; stroke-width: 2; } @media (prefers-color-scheme: dark) { text { fill: #a3adb8; } }"""

Points = Mapping[str, Mapping[int, Sequence[float]]]
"""Accuracy (0 to 1), distance and others, by scheduler and number of steps."""


def chart(points: Points) -> str:
    """Return the chart of the points; steps are logarithmic."""
    accuracies = {name: {n: 100 * p[0] for n, p in line.items()} for name, line in points.items()}
    distances = {name: {n: p[1] for n, p in line.items()} for name, line in points.items()}
    parts = [
        *_panel(0, "images with the right digit (%), by steps", accuracies, 100.0),
        *_panel(WIDTH - PANEL - RIGHT, "distance from real digits, by steps", distances),
    ]
    for number, name in enumerate(points):
        x, y = LEFT + 160 * number, HEIGHT - 10
        parts.append(f'<path {_stroke(number)} d="M{x} {y - 4}h28"/>')
        parts.append(f'<text class="left" x="{x + 34}" y="{y}">{name}</text>')
    title = "Accuracy and distance of drawn digits, by scheduler and number of denoising steps"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def _panel(
    left: int, title: str, lines: Mapping[str, Mapping[int, float]], most: float = math.inf
) -> Iterator[str]:
    """Yield the panel's title, ticks and lines; `most` is the largest possible value."""
    counts = list(next(iter(lines.values())))
    values = [value for line in lines.values() for value in line.values()]
    low, high = 10 * math.floor(min(values) / 10), min(10 * math.ceil(max(values) / 10), most)
    low -= 10 * (low == high)
    start, end, base = left + LEFT, left + PANEL, HEIGHT - BOTTOM
    x = _scale(math.log(counts[0]), math.log(counts[-1]), start, end)
    y = _scale(low, high, base, TOP)
    yield f'<text class="left" x="{start}" y="{TOP - 16}">{title}</text>'
    for value in range(low, int(high) + 1, 10):
        yield f'<path class="grid" d="M{start} {y(value):.1f}H{end}"/>'
        yield f'<text class="right" x="{start - 6}" y="{y(value) + 4:.1f}">{value}</text>'
    for steps in counts:
        yield f'<text x="{x(math.log(steps)):.1f}" y="{base + 18}">{steps}</text>'
    for number, line in enumerate(lines.values()):
        places = " ".join(f"{x(math.log(steps)):.1f},{y(value):.1f}" for steps, value in line.items())
        yield f'<polyline points="{places}" {_stroke(number)}/>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the linear function from low to start and from high to end."""
    return lambda value: start + (value - low) / ((high - low) or 1) * (end - start)


def _stroke(number: int) -> str:
    """Return the attributes of a scheduler's line."""
    at = number % len(COLOURS)
    return f'class="line" stroke="{COLOURS[at]}" stroke-dasharray="{DASHES[at]}"'
