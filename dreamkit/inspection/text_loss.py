"""Texts that a tokenizer cannot write: the sign of a stand-in, or of a tokenizer for another language."""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit.document import Document, Text
from dreamkit.errors import count, excerpt
from dreamkit.parts.language import LanguageModel


def text_loss_note(language_model: LanguageModel, documents: Sequence[Document]) -> str | None:
    """Return a note if the tokenizer loses some text of most documents; spaces do not count.

    A well-known model has a stand-in without its tokenizer's files, which counts one token for each text.
    """
    lost = [
        text.text for document in documents for text in _texts(document)[:1] if _is_lost(language_model, text)
    ]
    if not lost or 2 * len(lost) <= len(documents):
        return None
    return (
        f"the tokenizer loses text of {count(len(lost), 'document')} of {len(documents)}, such as "
        f"'{excerpt(lost[0])}', so the numbers of text tokens are not those of training; "
        "a well-known model without its tokenizer's files has a stand-in: download them"
    )


def _texts(document: Document) -> list[Text]:
    return [segment for segment in document if isinstance(segment, Text) and segment.text.strip()]


def _is_lost(language_model: LanguageModel, text: Text) -> bool:
    decoded = language_model.decode(language_model.tokenize(text.text))
    return "".join(decoded.split()).casefold() != "".join(text.text.split()).casefold()
