"""Events of generation, in the order in which they happen.

`document` is the number of a prompt in the call of `generate`, or that of its `Handle` in an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dreamkit.document import Document

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

EndReason = Literal["end", "tokens", "images", "length", "stop", "cancelled"]


@dataclass(frozen=True)
class TokenScore:
    """A written token with probabilities of the model's own distribution, the softmax of its logits.

    As in the APIs of OpenAI and vLLM, no setting changes them: not the repetition penalty, suppressed tokens (those
    that are never written, and the dream token if `max_images` is 0), temperature, top-k, top-p or min-p.

    Attributes:
        token: id of the token.
        log_prob: natural logarithm of its probability; None unless `log_probs` is set.
        alternatives: ids and log probabilities of the `log_probs` most likely tokens, the first one the most likely.
            The token may be one of them.
        dream_prob: probability of the dream token in its place; None unless `dream_probs` is set.
    """

    token: int
    log_prob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    dream_prob: float | None = None


@dataclass(frozen=True)
class TextPiece:
    """New text of a document.

    The pieces of a document between two images, joined, are its text there. Text whose characters the next token may
    change, such as an incomplete character, comes with a later piece. So does text that may begin a stop string.

    Attributes:
        document: number of the document among the prompts.
        text: the new characters.
        ids: ids of the tokens that completed them.
        scores: scores of these tokens, if `log_probs` or `dream_probs` is set. The scores of all events of a document
            are those of all tokens that it wrote, in order.
    """

    document: int
    text: str
    ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class ImageStarted:
    """The start of an image, as the model wrote the dream token.

    Attributes:
        document: number of the document among the prompts.
        image: number of the image in the generated part of the document, from 0.
        scores: score of the dream token, as in `TextPiece`.
    """

    document: int
    image: int
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class DenoisingStep:
    """A completed denoising step of an image.

    Attributes:
        document: number of the document among the prompts.
        image: number of the image in the generated part of the document, from 0.
        step: number of the step, from 0.
        steps: number of all steps.
        preview: decodes the latents after this step to a PIL image; call it only for steps to show, as it takes time.
        picture: this image, if it is decoded already: after every `preview_every`-th step but the last one.
    """

    document: int
    image: int
    step: int
    steps: int
    preview: Callable[[], Picture] = field(repr=False, compare=False)
    picture: Picture | None = field(default=None, repr=False, compare=False)


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
        reason: "end" for an end token, "stop" for a stop string, "tokens" or "images" for `max_tokens` or `max_images`,
            "length" for the model's `max_length`. "images" means that the model wrote another dream token; if
            `max_images` is 0, it never does. "cancelled" is for `Handle.cancel`.
        scores: scores, as in `TextPiece`, of the last tokens, which no other event has: an end token, a dream token
            without an image, tokens of a stop string.
    """

    document: int
    result: Document
    reason: EndReason
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class DocumentFailed:
    """A document that ends by an error. Others go on; `DreamModel.generate` raises the error.

    Attributes:
        document: number of the document among the prompts.
        result: the prompt and what follows it, up to the text or image that failed.
        error: about an image that cannot be read or drawn, values that are not finite, a part or the budget.
    """

    document: int
    result: Document
    error: Exception


Event = TextPiece | ImageStarted | DenoisingStep | ImageDone | DocumentDone | DocumentFailed


def collect(events: Iterable[Event]) -> list[Document]:
    """Return the finished documents of a generation, in the order of the prompts."""
    results = {event.document: event.result for event in events if isinstance(event, DocumentDone)}
    return [results[number] for number in sorted(results)]
