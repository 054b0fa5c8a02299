"""The text that a model writes between two images, in pieces whose characters no later token changes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from dreamkit.document import Role, Text
from dreamkit.model.growing_text import GrowingText
from dreamkit.model.stop_strings import begun_length, stop_start

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
        stop: strings before which the text ends. One may begin in the earlier texts, but has a new character.

    Attributes:
        is_stopped: flag: the text has ended before a stop string.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        lead: int | None,
        earlier: Sequence[Text] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self.decode = language_model.decode
        self.lead, self.stop = lead, stop
        self.ids = [token for text in earlier for token in text.ids or ()]
        self.growing = GrowingText(self.decode)
        self.text = self._stable_text(self.growing.of(self.ids))
        self.earlier = tuple(earlier)
        self.earlier_ids, self.earlier_length = len(self.ids), len(self.text)
        self.taken_ids, self.taken_length = len(self.ids), len(self.text)
        self.is_stopped = False
        self.has_all_ids = True

    def take(self, token: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        """Add `token`, and return the new text with the ids not returned before; None if there is none yet.

        Text that may be the beginning of a stop string comes later or, if it is one, not at all, and so do its ids.
        Without a token the text is finished, so that an incomplete character or stop string is returned too.
        """
        if token is not None:
            self.ids.append(token)
        elif self.is_stopped or len(self.ids) == self.earlier_ids:
            return None
        text = self.growing.of(self.ids)
        start = None if token is None else stop_start(text.rstrip(BROKEN), self.stop, len(self.text))
        if start is not None:
            self._end(text[:start])
        else:
            stable = self._stable_text(text) if token is not None else text
            self.text += stable[len(self.text) :]
            if token is not None and stable == text:
                self.growing = self.growing.settle(self.ids, text)
        begun = begun_length(self.text, self.stop) if token is not None and start is None else 0
        piece = self.text[self.taken_length : len(self.text) - begun]
        count = self._ids_within(len(self.text) - begun) if begun and piece else len(self.ids)
        ids = tuple(self.ids[self.taken_ids : count])
        if not piece and not (ids and (token is None or self.is_stopped)):
            return None
        self.taken_length += len(piece)
        self.taken_ids += len(ids)
        return piece, ids

    def is_stopped_by(self, tokens: Sequence[int]) -> bool:
        """Return True if the last of `tokens` would end the text before a stop string, as the others do not."""
        longer = copy(self)
        longer.ids = [*self.ids, *tokens[:-1]]
        longer.take(tokens[-1])
        return longer.is_stopped

    def _end(self, text: str) -> None:
        """End the text as `text`, before a stop string, and drop the ids of later characters."""
        self.text, self.is_stopped = text, True
        del self.ids[self._ids_within(len(text)) :]
        self.has_all_ids = self.decode(self.ids) == text
        self.earlier_ids = min(self.earlier_ids, len(self.ids))
        self.earlier_length = min(self.earlier_length, len(text))

    def _ids_within(self, length: int) -> int:
        """Return the number of first ids that decode to the first `length` characters, or to a beginning of them."""
        count = len(self.ids)
        while not self.text[:length].startswith(self.decode(self.ids[:count])):
            count -= 1
        return count

    def segment(self, role: Role | None) -> Text | None:
        """Return the new text as a segment with its ids; None if it is empty.

        Its ids are None if it ends before a stop string that starts inside a token.
        """
        text, ids = self.text[self.earlier_length :], tuple(self.ids[self.earlier_ids :])
        if not text and not ids:
            return None
        return Text(text, role=role, ids=ids if self.has_all_ids else None)

    def earlier_texts(self) -> list[Text]:
        """Return the earlier texts without their last characters, if these are in the new text or a stop string."""
        texts, length, count = [], self.earlier_length, self.earlier_ids
        for text in self.earlier:
            texts.append(replace(text, text=text.text[:length], ids=(text.ids or ())[:count]))
            length -= len(texts[-1].text)
            count -= len(texts[-1].ids or ())
        return texts

    def _stable_text(self, text: str) -> str:
        """Return the beginning of `text`, that of the ids, that is the same after any further token.

        Bytes change characters before them: those of an incomplete character, and with a byte fallback (SentencePiece)
        also whole characters that bytes directly before them form. So the text is compared with that before one more
        byte, which starts a character and does not complete it.
        """
        if self.lead is not None and text:
            text = _common_beginning(text, self.growing.of([*self.ids, self.lead]))
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
