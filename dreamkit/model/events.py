"""What happens while documents are written, event by event."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dreamkit.document import Document

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EndReason = Literal["end", "tokens", "images", "length"]


@dataclass(frozen=True)
class TextPiece:
    """Some more text of document number `document`, and the ids of the tokens that finished it.

    The pieces joined are the document's text, but where a model writes bytes that are no character: these change how
    the bytes before them read.
    """

    document: int
    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageStarted:
    """Document `document` decided to draw its picture number `image`, counted from 0."""

    document: int
    image: int


@dataclass(frozen=True)
class DenoisingStep:
    """One of `steps` denoising steps is done; `preview()` decodes the picture as it stands."""

    document: int
    image: int
    step: int
    steps: int
    preview: Callable[[], Picture] = field(repr=False, compare=False)


@dataclass(frozen=True)
class ImageDone:
    """A picture is drawn."""

    document: int
    image: int
    picture: Picture


@dataclass(frozen=True)
class DocumentDone:
    """A document is finished: at its `end` token, or at the limit on `tokens`, on `images` or on the model's `length`.

    The limit on images is met by the decision to draw one more; where it is 0, only text is written.

    `result` holds the prompt and what was written after it.
    """

    document: int
    result: Document
    reason: EndReason


Event = TextPiece | ImageStarted | DenoisingStep | ImageDone | DocumentDone


def collect(events: Iterable[Event]) -> list[Document]:
    """The finished documents of a generation, in the order of the prompts."""
    done = {event.document: event.result for event in events if isinstance(event, DocumentDone)}
    return [done[number] for number in sorted(done)]
