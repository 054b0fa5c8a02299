"""A sample beside its document, as one SVG: the files on the left, what the model sees of them on the right.

The SVG is the same on every machine: its letters have a fixed width, and its images are vectors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
from PIL.Image import Image as Picture

from dreamkit.errors import count
from dreamkit.inspection.pieces import Slots, SpecialToken, TextRun, Turn
from dreamkit.pages.frame import COLOURS

CHARACTER, LINE, SIZE = 7.8, 22, 13  # width of a letter, height of a line of text, size of the font
SMALL_CHARACTER, SMALL = 6.3, 10.5  # in captions of images and special tokens
PICTURE = 48  # side of an image
GREYS = 15  # steps between black and white
LEFT, GAP, RIGHT, PAD = 400, 44, 436, 14  # widths of the cards, between them, and inside

STYLE = (
    COLOURS.strip()
    + """
text { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; }
.small { font-size: 10.5px; } .head { font-weight: 600; } .ink { fill: var(--ink); } .soft { fill: var(--soft); }
.card { fill: var(--card); stroke: var(--rule); } .back { fill: var(--learned); } .line { fill: var(--line); }
.token { fill: var(--token); } .bar { fill: var(--rule); } .bar.assistant { fill: var(--line); }
.read { fill: var(--read-back); stroke: var(--read); }
.draw { fill: var(--draw-back); stroke: var(--draw); stroke-dasharray: 4 3; }
text.read { fill: var(--read); stroke: none; } text.draw { fill: var(--draw); stroke: none; }
.arrow { fill: none; stroke: var(--soft); stroke-width: 1.5; }
"""
)


@dataclass(frozen=True)
class Words:
    """A text that flows; `kind` is `ink`, `soft`, `head` or `learned`."""

    text: str
    kind: str = "soft"


@dataclass(frozen=True)
class Chip:
    """A special token."""

    name: str
    is_learned: bool


@dataclass(frozen=True)
class Figure:
    """An image, in a frame with a caption if it has slots: `kind` is `read` or `draw`."""

    picture: Picture
    kind: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Break:
    """The end of a line; the next ones are `indent` letters to the right, beside a bar of the colour of `role`.

    Lines that go on are `hang` letters further to the right.
    """

    indent: int = 0
    role: str = ""
    hang: int = 0


Item = Words | Chip | Figure | Break


def beside(files: Sequence[Item], turns: Sequence[Turn], *, title: str, heads: tuple[str, str]) -> str:
    """Return an SVG with `files` on the left and the document of `turns` on the right, below their `heads`."""
    pictures = Pictures()
    cards = []
    sides = ((0, LEFT, heads[0], files), (LEFT + GAP, RIGHT, heads[1], list(document_items(turns))))
    height = 0.0
    for x, width, head, items in sides:
        flow = Flow(width - 2 * PAD, pictures)
        flow.add(Words(head, "head"), Break(), *items)
        cards.append((x, width, flow.finish()))
        height = max(height, flow.y)
    height = round(height + 2 * PAD - 4)
    total = LEFT + GAP + RIGHT
    middle = height / 2
    arrow = f"M{LEFT + 10} {middle:g}h{GAP - 22}m-6 -5l6 5l-6 5"
    body = "".join(
        f'<rect class="card" x="{x + 0.5:g}" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>\n'
        f'<g transform="translate({x + PAD} {PAD - 4})">\n{content}</g>\n'
        for x, width, content in cards
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" role="img">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(description(turns))}</desc>\n"
        f"<style>{STYLE}</style>\n<defs>\n{pictures.definitions()}</defs>\n"
        f'{body}<path class="arrow" d="{arrow}"/>\n</svg>\n'
    )


def document_items(turns: Iterable[Turn]) -> Iterator[Item]:
    """Yield the items of a document."""
    for turn in turns:
        if turn.roles:
            yield Break(2, turn.roles[-1])
            yield Words(" and ".join(turn.roles), "soft")
            yield Break(2, turn.roles[-1])
        for piece in turn.pieces:
            match piece:
                case TextRun(text=text, is_learned=is_learned):
                    yield Words(text, "learned" if is_learned else "soft")
                case SpecialToken(name=name, is_learned=is_learned):
                    yield Chip(name, is_learned)
                case Slots(picture=picture, tokens=tokens, is_drawn=True):
                    yield Figure(picture, "draw", f"draw · {count(tokens, 'query')}")
                case Slots(picture=picture, tokens=tokens):
                    yield Figure(picture, "read", f"read · {count(tokens, 'token')}")


def description(turns: Iterable[Turn]) -> str:
    """Return the document in words, for those who do not see the SVG."""
    parts = []
    for turn in turns:
        parts += [f"{' and '.join(turn.roles)}:"] * bool(turn.roles)
        for piece in turn.pieces:
            match piece:
                case TextRun(text=text, is_learned=is_learned):
                    parts.append(f"{'learned' if is_learned else 'read'} text '{text.strip()}',")
                case SpecialToken(name=name):
                    parts.append(f"token {name},")
                case Slots(tokens=tokens, is_drawn=is_drawn):
                    slots = f"{tokens} {'dream queries' if is_drawn else 'vision tokens'}"
                    parts.append(f"{slots} of an image to {'draw' if is_drawn else 'read'},")
    return f"The document: {' '.join(parts)}".rstrip(",")


class Pictures:
    """The images of an SVG; each one is defined once, as vectors."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._symbols: list[str] = []

    def use(self, picture: Picture, x: float, y: float, side: int) -> str:
        """Return the element that shows an image at a place."""
        greys = np.asarray(picture.convert("L"))
        if (key := greys.tobytes()) not in self._names:
            self._names[key] = f"image{len(self._names)}"
            self._symbols.append(_symbol(self._names[key], greys))
        return f'<use href="#{self._names[key]}" x="{x:g}" y="{y:g}" width="{side}" height="{side}"/>\n'

    def definitions(self) -> str:
        """Return the definitions of all images."""
        return "".join(self._symbols)


def _symbol(name: str, greys: np.ndarray) -> str:
    levels = np.rint(greys / 255 * GREYS).astype(int)
    height, width = levels.shape
    paths: dict[int, str] = {}
    for y, row in enumerate(levels):
        x = 0
        for level, group in groupby(row.tolist()):
            size = len(list(group))
            paths[level] = paths.get(level, "") + f"M{x} {y}h{size}v1h-{size}z"
            x += size
    drawn = "".join(
        f'<path fill="#{round(level / GREYS * 255):02x}{round(level / GREYS * 255):02x}'
        f'{round(level / GREYS * 255):02x}" d="{path}"/>'
        for level, path in sorted(paths.items())
    )
    return (
        f'<symbol id="{name}" viewBox="0 0 {width} {height}" shape-rendering="crispEdges">{drawn}</symbol>\n'
    )


class Flow:
    """Items in lines of at most `width`; the letters have a fixed width, so that every machine breaks them alike."""

    def __init__(self, width: float, pictures: Pictures) -> None:
        self.width = width
        self.y = 0.0
        self._pictures = pictures
        self._start = self._x = 0.0
        self._role = ""
        self._line: list[tuple[float, Item]] = []
        self._elements: list[str] = []

    def add(self, *items: Item) -> None:
        """Append items to the lines."""
        for item in items:
            match item:
                case Break(indent=indent, role=role, hang=hang):
                    self._end()
                    self._x, self._start = indent * CHARACTER, (indent + hang) * CHARACTER
                    self._role = role
                case Words(text=text, kind=kind):
                    for number, line in enumerate(text.split("\n")):
                        if number:
                            self._end()
                        for word in re.findall(r"\s*\S+|\s+", line):
                            self._place_word(word, kind)
                case _:
                    self._place(item, _width(item) + 4)

    def finish(self) -> str:
        """End the last line and return the elements of all lines."""
        self._end()
        return "".join(self._elements)

    def _place_word(self, word: str, kind: str) -> None:
        if self._line and self._x + len(word.rstrip()) * CHARACTER > self.width:
            self._end()
            word = word.lstrip()
        while len(word) * CHARACTER > self.width - self._start:  # longer than a line
            cut = int((self.width - self._start) / CHARACTER)
            self._place(Words(word[:cut], kind), cut * CHARACTER)
            word = word[cut:]
        if self._line and isinstance(last := self._line[-1][1], Words) and last.kind == kind:
            self._line[-1] = (self._line[-1][0], Words(last.text + word, kind))
            self._x += len(word) * CHARACTER
        elif word:
            self._place(Words(word, kind), len(word) * CHARACTER)

    def _place(self, item: Item, width: float) -> None:
        if self._line and self._x + width > self.width + 4:
            self._end()
        self._line.append((self._x, item))
        self._x += width

    def _end(self) -> None:
        if self._line:
            height = max(_height(item) for _, item in self._line)
            if self._role:
                bar = f'<rect class="bar {self._role}" y="{self.y:g}" width="3" height="{height:g}"/>\n'
                self._elements.append(bar)
            for x, item in self._line:
                self._elements.append(self._drawn(item, x, self.y + height / 2))
            self.y += height
        self._line, self._x = [], self._start

    def _drawn(self, item: Item, x: float, middle: float) -> str:
        match item:
            case Words(text=text, kind=kind):
                back = _learned(x, middle, len(text) * CHARACTER, 18) if kind == "learned" else ""
                style = {"learned": "ink", "head": "ink head"}.get(kind, kind)
                return back + _text(text, x, middle + 4.5, CHARACTER, style)
            case Chip(name=name, is_learned=is_learned):
                width = _width(item)
                token = f'<rect class="token" x="{x + 2:g}" y="{middle - 9:g}" width="{width:g}" height="18" rx="4"/>\n'
                back = _learned(x + 2, middle, width, 18) if is_learned else token
                style = "small ink" if is_learned else "small soft"
                return back + _text(name, x + 7, middle + 3.5, SMALL_CHARACTER, style)
            case Figure(picture=picture, kind=kind):
                return (
                    self._figure(item, x, middle) if kind else self._pictures.use(picture, x, middle - 20, 40)
                )
        raise AssertionError(item)

    def _figure(self, figure: Figure, x: float, middle: float) -> str:
        width, top = _width(figure), middle - _height(figure) / 2 + 4
        frame = (
            f'<rect class="{figure.kind}" x="{x + 2.5:g}" y="{top + 0.5:g}" width="{width - 1:g}" '
            f'height="{PICTURE + 25}" rx="6"/>\n'
        )
        image = self._pictures.use(figure.picture, x + 2 + (width - PICTURE) / 2, top + 6, PICTURE)
        start = x + 2 + (width - len(figure.caption) * SMALL_CHARACTER) / 2
        caption = _text(figure.caption, start, top + PICTURE + 18, SMALL_CHARACTER, f"small {figure.kind}")
        return frame + image + caption


def _width(item: Item) -> float:
    match item:
        case Chip(name=name):
            return len(name) * SMALL_CHARACTER + 10
        case Figure(kind="draw" | "read", caption=caption):
            return max(PICTURE, len(caption) * SMALL_CHARACTER) + 14
        case Figure():
            return 40
    raise AssertionError(item)


def _height(item: Item) -> float:
    if isinstance(item, Figure):
        return PICTURE + 34 if item.kind else 46
    return LINE


def _learned(x: float, middle: float, width: float, height: float) -> str:
    top = middle - height / 2
    return (
        f'<rect class="back" x="{x:g}" y="{top:g}" width="{width:g}" height="{height:g}"/>'
        f'<rect class="line" x="{x:g}" y="{top + height - 2:g}" width="{width:g}" height="2"/>\n'
    )


def _text(text: str, x: float, y: float, character: float, style: str) -> str:
    """Return a text whose letters have the same width in every font. Spaces at its ends are only room."""
    lead = len(text) - len(text.lstrip())
    shown = text.strip()
    if not shown:
        return ""
    length = len(shown) * character
    return (
        f'<text class="{style}" x="{x + lead * character:g}" y="{y:g}" textLength="{length:g}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(shown, quote=False)}</text>\n'
    )
