"""Documents of a training as one HTML page: as the model sees them, and as they share the rows of a batch.

The page needs no other file and has no script. Its documents may be hostile: every text is escaped, and the page's
policy forbids everything but its own style and images.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from dreamkit.errors import DocumentError, count, printable
from dreamkit.inspection.pieces import Slots, SpecialToken, TextRun, Turn, turns
from dreamkit.inspection.preview_style import STYLE
from dreamkit.inspection.run_data import PackedBatch, Place, Row, RunData
from dreamkit.pages.frame import html_page
from dreamkit.pages.image_tags import image_tag
from dreamkit.parts.pictures import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

LARGEST: Final = 160  # longest side in pixels of an image in the page; larger images are scaled down
SMALL: Final = 64  # smaller images are enlarged by a whole factor to about this side
UNESCAPED: Final = "\n\t\u200c\u200d"  # the last two join the characters of emoji and of some scripts
FIRST: Final = "the first one, which nothing predicts"


def preview_page(
    articles: Mapping[int, str],
    batches: Sequence[PackedBatch],
    *,
    title: str,
    notes: Sequence[str] = (),
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return the page of articles by their places, with a bar for each row of `batches`.

    `facts` and `notes` are below the title.
    """
    bars = "".join(_batch(number, batch, articles) for number, batch in enumerate(batches))
    listed = " · ".join(f"{escape(name)} {escape(printable(str(v)))}" for name, v in (facts or {}).items())
    body = [
        f"<h1>{escape(printable(title))}</h1>",
        f'<p class="facts">{listed}</p>',
        *(f'<p class="problem">{escape(printable(note))}</p>' for note in notes),
        LEGEND,
        *([ROWS, bars] if bars else ()),
        "<h2>Documents</h2>",
        *articles.values(),
    ]
    return html_page(title, "\n".join(body), style=STYLE)


LEGEND: Final = (
    '<ul class="legend">'
    '<li><span class="text learned">learned text</span></li>'
    '<li><span class="text">text that is only read</span></li>'
    '<li><span class="token">&lt;token&gt;</span> special token</li>'
    '<li><span class="text first">first token</span> of a document: nothing predicts it</li>'
    '<li><span class="swatch read">read</span> slots of vision tokens</li>'
    '<li><span class="swatch draw">draw</span> slots of dream queries</li>'
    "</ul>"
)

ROWS: Final = (
    '<h2>Rows of a batch</h2><p class="soft about">A bar is a row, and its parts are documents by their place. '
    "Documents in a darker colour are shown below. A part without a number is no document: each batch needs a text, an "
    "image to read and one to draw. Hatching is padding.</p>"
)


def _batch(number: int, batch: PackedBatch, shown: Container[int]) -> str:
    size = len(batch.rows) * batch.width
    share = f"{batch.filled / size:.0%} of {count(f'{size:,}', 'token')} filled"
    rows = "".join(_row(index, row, batch.width, shown) for index, row in enumerate(batch.rows))
    about = f"batch {number}: {count(len(batch.rows), 'row')} of {count(batch.width, 'token')}, {share}"
    return f'<section class="batch"><h4>{about}</h4>{rows}</section>'


def _row(index: int, row: Row, width: int, shown: Container[int]) -> str:
    parts = []
    for place, length in row.tokens:
        about = "no document" if place is None else f"document {place}"
        about = f"{about}: {count(length, 'token')}"
        style = f'style="width:{100 * length / width:.3f}%" title="{about}" aria-label="{about}"'
        label = "" if place is None else str(place)
        is_link = place in shown
        parts.append(
            f'<a href="#document-{place}" {style}>{label}</a>' if is_link else f"<span {style}>{label}</span>"
        )
    padding = width - row.filled
    label = f"row {index}: {count(len(row.tokens), 'document')}, {count(padding, 'token')} of padding"
    return f'<div class="row" role="group" aria-label="{label}">{"".join(parts)}</div>'


def article(place: Place, run: RunData) -> str:
    """Return the part of the page about a place. Its images are small copies."""
    document, sequence = place.document, place.sequence
    name = f"place {place.number}" if document is None else document.name
    head = (
        f'<span class="soft">{place.number}</span> <span class="name">{escape(printable(name))}</span> '
        f'<span class="soft">data.{place.data}</span>'
    )
    body = ""
    if document is not None and sequence is not None:
        about = [
            count(f"{len(sequence):,}", "token"),
            f"{sequence.targets:,} learned",
            f"{len(sequence.reads)} read",
            f"{len(sequence.draws)} drawn",
            *(["cut at the end"] if sequence.is_cut else ()),
        ]
        head += f' <span class="soft">{" · ".join(about)}</span>'
        skipped = (
            f'<p class="skipped">skipped here: {escape(printable(each.text))}</p>'
            for each in sequence.skipped
        )
        body = "".join([*skipped, *map(_turn, turns(document, sequence, run.sequencer))])
    elif document is not None:
        body = f'<div class="flow">{"".join(_unused(segment) for segment in document)}</div>'
    if place.problem is not None:
        body = f'<p class="problem">{escape(printable(place.problem))}</p>{body}'
    return f'<article id="document-{place.number}"><h3>{head}</h3>{body}</article>'


def _turn(turn: Turn) -> str:
    pieces = "".join(map(_piece, turn.pieces))
    if not turn.roles:
        return f'<div class="flow">{pieces}</div>'
    role = " and ".join(turn.roles)
    return f'<section class="turn {turn.roles[-1]}"><h4>{role}</h4><div class="flow">{pieces}</div></section>'


def _piece(piece: TextRun | SpecialToken | Slots) -> str:
    match piece:
        case TextRun(text=text, tokens=tokens):
            use = "learned" if piece.is_learned else FIRST if piece.is_first else "only read"
            return f'<span class="text{_use(piece)}" title="{count(tokens, "token")}, {use}">{_visible(text)}</span>'
        case SpecialToken(name=name):
            use = ", learned" if piece.is_learned else f", {FIRST}" if piece.is_first else ""
            return f'<span class="token{_use(piece)}" title="special token{use}">{_visible(name)}</span>'
        case Slots(picture=picture, tokens=tokens, is_drawn=True):
            return _figure(picture, f"draw · {count(tokens, 'query')}", "draw")
        case Slots(picture=picture, tokens=tokens):
            return _figure(picture, f"read · {count(tokens, 'token')}", "read")


def _use(piece: TextRun | SpecialToken) -> str:
    return " learned" if piece.is_learned else " first" if piece.is_first else ""


def _unused(segment: object) -> str:
    """Return a segment of a document without a sequence."""
    text = getattr(segment, "text", None)
    if isinstance(text, str):
        return f'<span class="text">{_visible(text)}</span>'
    return _figure(segment.picture, "not used", "read")  # type: ignore[attr-defined]  # an image


def _visible(text: str) -> str:
    """Return a text as HTML, with control characters as escapes that look unlike the text."""
    parts = []
    for character in text:
        shown = character if character in UNESCAPED else printable(character)
        parts.append(escape(shown) if shown == character else f'<span class="escape">{escape(shown)}</span>')
    return "".join(parts)


def _figure(picture: Picture, caption: str, kind: str) -> str:
    width, height = picture.size
    alt = f"image of {width} x {count(height, 'pixel')}, {caption.partition(' ·')[0]}"
    try:
        image = _thumbnail(picture, alt)
    except DocumentError as error:
        image = f'<span class="escape">{escape(printable(str(error)))}</span>'
    return f'<figure class="{kind}">{image}<figcaption>{caption}</figcaption></figure>'


def _thumbnail(picture: Picture, alt: str) -> str:
    return image_tag(to_rgb(picture), alt, largest=LARGEST, small=SMALL, kind="JPEG")
