"""A sequence in pieces that people can read: texts, special tokens and slots of images, by turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from dreamkit.data.sequence import IGNORED, Sequence, Sequencer
from dreamkit.document import Document, Role
from dreamkit.errors import DocumentError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class TextRun:
    """A text of `tokens` tokens; `is_learned`: the model is trained to write them.

    `is_first`: it would be, but no token of the document is before it.
    """

    text: str
    tokens: int
    is_learned: bool
    is_first: bool = False


@dataclass(frozen=True)
class SpecialToken:
    """A token without a text; `is_learned` and `is_first` are those of `TextRun`."""

    name: str
    is_learned: bool
    is_first: bool = False


@dataclass(frozen=True)
class Slots:
    """The `tokens` slots of an image: of dream queries if `is_drawn`, else of vision tokens."""

    picture: Picture
    tokens: int
    is_drawn: bool


Piece = TextRun | SpecialToken | Slots


@dataclass(frozen=True)
class Turn:
    """The pieces of a turn with the texts of the template around it; `roles` is empty outside a conversation."""

    roles: tuple[Role, ...]
    pieces: tuple[Piece, ...]


def turns(document: Document, sequence: Sequence, sequencer: Sequencer) -> list[Turn]:
    """Return the pieces of the sequence of a document, by turn.

    Turns that a chat template does not keep apart are one, with the roles of all.
    """
    spans = list(_turn_spans(document, sequence, sequencer))
    return [Turn(roles, tuple(_pieces(sequence, sequencer, start, end))) for roles, start, end in spans]


def _turn_spans(
    document: Document, sequence: Sequence, sequencer: Sequencer
) -> Iterator[tuple[tuple[Role, ...], int, int]]:
    """Yield roles, start and end of each turn: the tokens of the first turns start those of the whole document."""
    if not document.is_conversation:
        yield (), 0, len(sequence)
        return
    groups = [(role, len(list(group))) for role, group in groupby(document, key=lambda each: each.role)]
    start = segments = 0
    roles: tuple[Role, ...] = ()
    for number, (role, size) in enumerate(groups):
        segments += size
        roles += (role,) if role is not None else ()
        if number == len(groups) - 1:
            yield roles, start, len(sequence)
            return
        try:
            ids = sequencer.tokens(Document(document.segments[:segments])).ids
        except DocumentError:  # a template may refuse a system text alone
            continue
        if start < len(ids) <= len(sequence) and sequence.ids[: len(ids)] == ids:
            yield roles, start, len(ids)
            start, roles = len(ids), ()


def _pieces(sequence: Sequence, sequencer: Sequencer, start: int, end: int) -> Iterator[Piece]:
    slots = {at: Slots(picture, sequencer.vision_tokens, False) for at, picture in sequence.reads}
    slots |= {at: Slots(picture, sequencer.dream_queries, True) for at, picture in sequence.draws}
    text: list[int] = []
    while start < end:
        token = sequence.ids[start]
        if start not in slots and not _is_special(token, sequencer):
            text.append(start)
            start += 1
            continue
        yield from _text_runs(sequence, sequencer, text)
        text = []
        if start in slots:
            yield slots[start]
            start += slots[start].tokens
        else:
            name = sequencer.language_model.token_name(token)
            yield SpecialToken(name, *_learning(sequence, start))
            start += 1
    yield from _text_runs(sequence, sequencer, text)


def _is_special(token: int, sequencer: Sequencer) -> bool:
    """Return True if a token adds no text to another one. A space alone may decode to no text."""
    language_model = sequencer.language_model
    letter = language_model.tokenize("a")
    return token in sequencer.special_ids or language_model.decode([*letter, token]) == language_model.decode(
        letter
    )


def _text_runs(sequence: Sequence, sequencer: Sequencer, places: list[int]) -> Iterator[TextRun]:
    """Yield the text of neighbouring tokens, apart where learned ones begin or end.

    They are decoded from the first one on: a tokenizer may leave out the space before it.
    """
    ids = [sequence.ids[place] for place in places]
    decode = sequencer.language_model.decode
    start = 0
    for (is_learned, is_first), group in groupby(places, key=lambda place: _learning(sequence, place)):
        size = len(list(group))
        text = decode(ids[: start + size])[len(decode(ids[:start])) :]
        yield TextRun(text, size, is_learned, is_first)
        start += size


def _learning(sequence: Sequence, place: int) -> tuple[bool, bool]:
    """Return `is_learned` and `is_first` of the token at `place`: a preceding token predicts its label, or none is."""
    has_label = sequence.labels[place] != IGNORED
    return has_label and place > 0, has_label and place == 0
