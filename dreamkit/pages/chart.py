"""Charts of lines as inline SVG, in a figure with a title and a key. This module loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from dreamkit.pages.frame import shown
from dreamkit.pages.thinning import Point, ThinnedLine

WIDTH, HEIGHT = 360, 160
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22
LOG_RANGE: Final = 20  # times that the highest value exceeds the lowest one on a logarithmic scale
COLOURS: Final = 5
DASHES: Final = 5
MOST_LINES: Final = 12  # in a chart

STYLE: Final = """
:root { --other: #7a3fb0; }
@media (prefers-color-scheme: dark) { :root { --other: #cfa6ff; } }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.chart { margin: 0; padding: .75rem .9rem .4rem; border: 1px solid var(--rule); border-radius: 8px;
  background: var(--card); }
.chart figcaption { font-size: .85rem; line-height: 1.45; }
.chart .name { font-weight: 600; }
.chart .about { color: var(--soft); }
.chart .key { display: flex; flex-wrap: wrap; gap: 0 .9rem; min-height: 1.3rem; margin: 0; padding: 0;
  list-style: none; }
.chart .key svg { display: inline-block; width: 26px; height: 10px; margin-right: .3rem; vertical-align: middle; }
.chart .key span { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.chart > svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.chart text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--rule); }
.chart polyline, .chart .sample { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.chart .logged { stroke-width: 1; opacity: .4; }
.c0 { stroke: var(--read); } .c1 { stroke: var(--draw); } .c2 { stroke: var(--line); }
.c3 { stroke: var(--other); } .c4 { stroke: var(--wrong); }
.d1 { stroke-dasharray: 7 3; } .d2 { stroke-dasharray: 2 3; } .d3 { stroke-dasharray: 8 3 2 3; }
.d4 { stroke-dasharray: 12 4; }
circle { fill: var(--card); stroke-width: 1.6; }
"""


@dataclass(frozen=True)
class Line:
    """A line of a chart, with its name in the key; one with `has_markers` shows each of its points."""

    name: str
    line: ThinnedLine
    has_markers: bool = False


@dataclass(frozen=True)
class Axis:
    """A map from values to positions, linear or logarithmic, with ticks at round values."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    ticks: Sequence[float] = field(default=())

    def at(self, value: float) -> float:
        """Return the position of a value."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return self.start + (self._scaled(value) - low) / (high - low) * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def chart(title: str, about: str, lines: Sequence[Line], *, unit: str = "step") -> str:
    """Return a figure of lines over `unit`, from 0 on; nothing without a point.

    The scale is logarithmic if all values are positive and differ by more than a factor of 20.
    """
    lines = [line for line in lines if len(line.line)]
    if not lines:
        return ""
    more = len(lines) - MOST_LINES
    lines = lines[:MOST_LINES]
    kept = [[*line.line.points()] for line in lines]
    x = _x_axis(
        min(0, *(px for points in kept for px, _ in points)), max(px for points in kept for px, _ in points)
    )
    y = _y_axis([value for points in kept for _, value in points])
    parts = [*_grid(x, y, unit)]
    for number, (line, points) in enumerate(zip(lines, kept, strict=True)):
        parts += _drawn(line, points, number, x, y)
    notes = [about, *(["logarithmic"] if y.is_log else []), *([f"and {more} more"] if more > 0 else [])]
    label = "; ".join(
        f"{line.name or title} from {figure(p[0][1])} to {figure(p[-1][1])}" for line, p in _ends(lines)
    )
    return (
        f'<figure class="chart"><figcaption><span class="name">{shown(title)}</span> '
        f'<span class="about">{" · ".join(filter(None, map(shown, notes)))}</span>{_key(lines)}</figcaption>'
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{shown(title)} over {shown(unit)}s: '
        f'{shown(label)}">{"".join(parts)}</svg></figure>'
    )


def _ends(lines: Iterable[Line]) -> Iterator[tuple[Line, tuple[Point, Point]]]:
    for line in lines:
        yield line, (line.line.first, line.line.last)


def _drawn(line: Line, points: Sequence[Point], number: int, x: Axis, y: Axis) -> Iterator[str]:
    """Yield the line of all points and that of their running mean; of a short line only the first."""
    style = line_style(number)
    means = [] if line.has_markers else line.line.means()
    if y.is_log:  # the mean of positive values is positive, but for rounding
        means = [(px, max(py, y.low)) for px, py in means]
    thin = f"logged c{number % COLOURS}" if means else style
    yield f'<polyline class="{thin}" points="{_positions(points, x, y)}"/>'
    if means:
        yield f'<polyline class="{style}" points="{_positions(means, x, y)}"/>'
    if line.has_markers or len(points) == 1:
        for px, py in points:
            yield f'<circle class="c{number % COLOURS}" cx="{x.at(px):.1f}" cy="{y.at(py):.1f}" r="2.6"/>'


def _key(lines: Sequence[Line]) -> str:
    """Return the list of the lines with their last values, each with a sample unless it is the only one."""
    items = []
    for number, line in enumerate(lines):
        marker = f'<circle class="c{number % COLOURS}" cx="13" cy="5" r="2.6"/>' if line.has_markers else ""
        sample = (
            f'<svg viewBox="0 0 26 10" aria-hidden="true"><path class="sample {line_style(number)}" d="M0 5H26"/>'
            f"{marker}</svg>"
        )
        name = f"{shown(line.name)} " if line.name else ""
        items.append(
            f"<li>{sample if len(lines) > 1 else ''}<span>{name}{figure(line.line.last[1])}</span></li>"
        )
    return f'<ul class="key">{"".join(items)}</ul>'


def line_style(number: int) -> str:
    """Return the classes of a line: lines of one chart differ in colour and in their dashes."""
    return f"c{number % COLOURS} d{(number + number // COLOURS) % DASHES}"


def _grid(x: Axis, y: Axis, unit: str) -> Iterator[str]:
    for value in y.ticks:
        at = y.at(value)
        yield f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>'
    for value in x.ticks:
        at = x.at(value)
        anchor = "end" if at > WIDTH - RIGHT - 14 else "middle"
        text = f"{short(value)} {shown(unit)}s" if value == x.ticks[-1] else short(value)
        anchor = "end" if value == x.ticks[-1] and at > WIDTH - RIGHT - 40 else anchor
        yield f'<text x="{at:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{text}</text>'


def _positions(points: Iterable[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in points)


def _x_axis(low: float, high: float) -> Axis:
    high = high if high > low else low + 1
    return Axis(low, high, LEFT, WIDTH - RIGHT, ticks=[*_linear_ticks(low, high, 4)])


def _y_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > LOG_RANGE
    if is_log:
        ticks = [*_log_ticks(low, high)]
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, TOP, is_log, ticks)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    lowest = 0.0 if 0 <= low < high / 2 else low - margin
    return Axis(lowest, high + margin, HEIGHT - BOTTOM, TOP, ticks=[*_linear_ticks(lowest, high + margin, 4)])


def _linear_ticks(low: float, high: float, number: int) -> Iterator[float]:
    """Yield about `number` multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    for index in range(first, min(math.floor(high / step + 1e-9), first + 4 * number) + 1):
        yield index * step


def _log_ticks(low: float, high: float) -> Iterator[float]:
    """Yield powers of ten in a range, at most about five; with 2 and 5 times them in a short range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 5))
    times = (1, 2, 5) if last - first <= 2 else (1,)
    for power in range(first, last + 1, every):
        yield from (t * 10.0**power for t in times if low <= t * 10.0**power <= high)


def figure(value: float) -> str:
    """Return a number with four digits, or an integer with all: one of ten digits or more is "1.178G"."""
    is_short = value == int(value) and abs(value) < 10**9
    return f"{value:,.0f}" if is_short else short(value) if abs(value) >= 10**9 else f"{value:.4g}"


def short(value: float) -> str:
    """Return a number for a tick: 1500 is "1.5k"."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if size <= abs(value) < 10**12:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-")
