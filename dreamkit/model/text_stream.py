"""The text that a model writes between two images, in pieces whose characters no later token changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from dreamkit.document import Role, Text

if TYPE_CHECKING:
    from dreamkit.parts.language import LanguageModel

BROKEN = "\ufffd"  # the character that stands for bytes which form none
LAST_CHARACTER = "\U0010ffff"  # vocabularies have it only as bytes


class TextStream:
    """The text of a growing list of token ids.

    Its text is the pieces that `take` returned, joined.

    Args:
        language_model: part that decodes the ids.
        lead: `lead_byte` of that part.
        earlier: written texts at the end of a prompt. The new text may continue their last word or character.
    """

    def __init__(self, language_model: LanguageModel, lead: int | None, earlier: Sequence[Text] = ()) -> None:
        self.decode = language_model.decode
        self.lead = lead
        self.ids = [token for text in earlier for token in text.ids or ()]
        self.text = self._stable_text()
        self.earlier = tuple(earlier)
        self.earlier_ids, self.earlier_length = len(self.ids), len(self.text)
        self.taken_ids = len(self.ids)

    def take(self, token: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        """Add `token`, and return the new text with the ids not returned before; None if there is none yet.

        Without a token the text is finished, so that an incomplete character is returned too.
        """
        if token is not None:
            self.ids.append(token)
        elif len(self.ids) == self.earlier_ids:
            return None
        text = self._stable_text() if token is not None else self.decode(self.ids)
        piece, ids = text[len(self.text) :], tuple(self.ids[self.taken_ids :])
        if not piece and not (ids and token is None):
            return None
        self.text += piece
        self.taken_ids = len(self.ids)
        return piece, ids

    def segment(self, role: Role | None) -> Text | None:
        """Return the taken text as a segment with its ids; None if no token was added."""
        ids = tuple(self.ids[self.earlier_ids :])
        return Text(self.text[self.earlier_length :], role=role, ids=ids) if ids else None

    def earlier_texts(self) -> list[Text]:
        """Return the earlier texts without their last characters, if these are in the new text."""
        texts, length = [], self.earlier_length
        for text in self.earlier:
            texts.append(replace(text, text=text.text[:length]))
            length -= len(texts[-1].text)
        return texts

    def _stable_text(self) -> str:
        """Return the beginning of the text that is the same after any further token.

        Bytes change characters before them: those of an incomplete character, and with a byte fallback (SentencePiece)
        also whole characters that bytes directly before them form. So the text is compared with that before one more
        byte, which starts a character and does not complete it.
        """
        text = self.decode(self.ids)
        if self.lead is not None and text:
            text = _common_beginning(text, self.decode([*self.ids, self.lead]))
        return text.rstrip(BROKEN)


def _common_beginning(one: str, other: str) -> str:
    if other.startswith(one):
        return one
    return "".join(
        pair[0] for pair in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    )


def lead_byte(language_model: LanguageModel) -> int | None:
    """Return the id of a token that starts a character and does not complete it; None in a vocabulary without bytes."""
    ids = language_model.tokenize(LAST_CHARACTER)
    return next((token for token in ids if language_model.decode([token]) == BROKEN), None)
