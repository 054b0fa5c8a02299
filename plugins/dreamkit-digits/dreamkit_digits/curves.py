"""Loss curves as inline SVG: one chart a loss, stages side by side, logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dreamkit import count

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 36
WINDOW = 5
"""Points of a running mean."""


@dataclass(frozen=True)
class Stage:
    """A stage of training: its title, and the log entries (`step`, `lm`, `denoising`) of its run."""

    title: str
    log: Sequence[Mapping[str, float | None]]

    @property
    def steps(self) -> int:
        return int(self.log[-1]["step"] or 0) if self.log else 0


def curve(stages: Sequence[Stage], key: str, title: str) -> str:
    """Return the chart of the loss `key`: logged values thin, running mean thick. Empty if nothing was logged."""
    lines, start = [], 0
    for stage in stages:
        logged = [(start + (entry["step"] or 0), entry[key]) for entry in stage.log]
        lines.append([(x, y) for x, y in logged if y is not None and 0 < y < math.inf])
        start += stage.steps
    lines = [line for line in lines if line]
    if not lines:
        return ""
    frame = _Frame(max(start, 1), *_limits([y for line in lines for _, y in line]))
    means = [_running_mean(line) for line in lines]
    first, last = f"{means[0][0][1]:.3g}", f"{means[-1][-1][1]:.3g}"
    description = (
        f"{title} over {count(start, 'step')} in {count(len(stages), 'stage')}, from {first} to {last}"
    )
    parts = [
        *_ticks(frame),
        *_stages(frame, stages),
        *(f'<polyline class="logged" points="{_points(frame, line)}"/>' for line in lines),
        *(f'<polyline class="mean" points="{_points(frame, line)}"/>' for line in means),
    ]
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(description)}">'
        f"{_label('title', 0, 14, 'start', f'{title}: {first} to {last}')}{''.join(parts)}</svg>"
    )


def _running_mean(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean of each point and its neighbours within `WINDOW`."""
    half = WINDOW // 2
    around = [line[max(0, at - half) : at + half + 1] for at in range(len(line))]
    return [(x, sum(y for _, y in some) / len(some)) for (x, _), some in zip(line, around, strict=True)]


@dataclass(frozen=True)
class _Frame:
    """A map from steps and losses to positions in the chart."""

    steps: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT + step / self.steps * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        share = math.log(loss / self.low) / math.log(self.high / self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of `values`, widened to the next ticks."""
    ticks = _around(min(values), max(values))
    return max(t for t in ticks if t < min(values)), min(t for t in ticks if t > max(values))


def _around(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten, beyond both ends of a range."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    return [step * 10.0**decade for decade in decades for step in (1, 2, 5)]


def _ticks(frame: _Frame) -> list[str]:
    """Return the grid lines of the loss and their labels."""
    parts = []
    for loss in (loss for loss in _around(frame.low, frame.high) if frame.low <= loss <= frame.high):
        y = frame.y(loss)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_label("tick", LEFT - 6, y + 4, "end", f"{loss:g}"))
    return parts


def _stages(frame: _Frame, stages: Sequence[Stage]) -> list[str]:
    """Return a line at the end of each stage, its step and its title."""
    parts, start = [], 0
    for stage in stages:
        end = start + stage.steps
        x, middle = frame.x(end), (frame.x(start) + frame.x(end)) / 2
        base = HEIGHT - BOTTOM
        parts.append(f'<line class="stage" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(_label("tick", x, base + 14, "end", count(end, "step")))
        parts.append(_label("tick", middle, base + 28, "middle", stage.title))
        start = end
    return parts


def _label(kind: str, x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _points(frame: _Frame, line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line)
