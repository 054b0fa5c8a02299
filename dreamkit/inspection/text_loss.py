"""Texts that a tokenizer cannot write: the sign of a stand-in, or of a tokenizer for another language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dreamkit.document import Document, Text
from dreamkit.errors import count, excerpt
from dreamkit.parts.language import LanguageModel

COMPARED: Final = 1000  # characters of a text: a document may be long


def first_text(document: Document) -> Text | None:
    """Return the first text of a document that is not blank, or None."""
    texts = (segment for segment in document if isinstance(segment, Text) and segment.text.strip())
    return next(texts, None)


def text_loss_note(language_model: LanguageModel, first_texts: Sequence[Text | None]) -> str | None:
    """Return a note if the tokenizer loses the first text of most documents; spaces do not count.

    A well-known model has a stand-in without its tokenizer's files, which counts one token for each text.
    """
    lost = [text.text for text in first_texts if text is not None and _is_lost(language_model, text)]
    if not lost or 2 * len(lost) <= len(first_texts):
        return None
    return (
        f"the tokenizer loses text of {count(len(lost), 'document')} of {len(first_texts)}, such as "
        f"'{excerpt(lost[0])}', so the numbers of text tokens are not those of training; "
        "a well-known model without its tokenizer's files has a stand-in: download them"
    )


def _is_lost(language_model: LanguageModel, text: Text) -> bool:
    start = text.text.lstrip()[:COMPARED]
    decoded = language_model.decode(language_model.tokenize(start))
    return "".join(decoded.split()).casefold() != "".join(start.split()).casefold()
