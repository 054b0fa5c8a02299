"""Events of generation, in the order in which they happen."""

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
    """New text of a document.

    The pieces of a document between two images, joined, are its text there. Text whose characters the next token may
    change, such as an incomplete character, comes with a later piece.

    Attributes:
        document: number of the document among the prompts.
        text: the new characters.
        ids: ids of the tokens that completed them.
    """

    document: int
    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageStarted:
    """The start of an image, as the model wrote the dream token.

    Attributes:
        document: number of the document among the prompts.
        image: number of the image in the generated part of the document, from 0.
    """

    document: int
    image: int


@dataclass(frozen=True)
class DenoisingStep:
    """A completed denoising step of an image.

    Attributes:
        document: number of the document among the prompts.
        image: number of the image in the generated part of the document, from 0.
        step: number of the step, from 0.
        steps: number of all steps.
        preview: decodes the latents after this step to a PIL image; call it only for steps to show, as it takes time.
    """

    document: int
    image: int
    step: int
    steps: int
    preview: Callable[[], Picture] = field(repr=False, compare=False)


@dataclass(frozen=True)
class ImageDone:
    """A finished image.

    Attributes:
        document: number of the document among the prompts.
        image: number of the image in the generated part of the document, from 0.
        picture: the PIL image.
    """

    document: int
    image: int
    picture: Picture


@dataclass(frozen=True)
class DocumentDone:
    """A finished document.

    Attributes:
        document: number of the document among the prompts.
        result: the prompt and the generated text and images after it. It can be the prompt of a later call.
        reason: "end" for an end token, "tokens" or "images" for `max_tokens` or `max_images`, "length" for the model's
            `max_length`. "images" means that the model wrote another dream token; if `max_images` is 0, it never does.
    """

    document: int
    result: Document
    reason: EndReason


Event = TextPiece | ImageStarted | DenoisingStep | ImageDone | DocumentDone


def collect(events: Iterable[Event]) -> list[Document]:
    """Return the finished documents of a generation, in the order of the prompts."""
    results = {event.document: event.result for event in events if isinstance(event, DocumentDone)}
    return [results[number] for number in sorted(results)]
