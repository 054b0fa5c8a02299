"""Conversations as a language model reads them: turns of texts and image tokens, in a chat template.

A part with fixed texts around turns uses `fixed_conversation`; one with a template of its own overrides
`LanguageModel.conversation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamkit.document import Role

if TYPE_CHECKING:
    from dreamkit.parts.language import LanguageModel
    from dreamkit.parts.specs import ChatTemplate


@dataclass(frozen=True)
class TurnPiece:
    """A text of a turn, or the special token that stands for an image.

    Attributes:
        text: the text; for an image, the name of its special token.
        train_on: flag: train the language model to write it.
        token_id: id of the special token; None for a text, in which names of special tokens are plain text.
    """

    text: str
    train_on: bool = False
    token_id: int | None = None


@dataclass(frozen=True)
class Turn:
    """The texts and images of one speaker, until another one speaks.

    Attributes:
        role: the speaker.
        pieces: texts and images, in order, which follow each other without a space.
    """

    role: Role
    pieces: tuple[TurnPiece, ...]


def fixed_conversation(
    part: LanguageModel, chat: ChatTemplate, turns: Sequence[Turn], prompt: bool
) -> tuple[list[int], list[bool]]:
    """Return what `LanguageModel.conversation` returns, for fixed texts around turns.

    A bos comes first, if the part has one. Each text is tokenized by itself.
    """
    ids: list[int] = [] if part.spec.bos_id is None else [part.spec.bos_id]
    labelled = [False] * len(ids)
    for text, is_template, train_on, token_id in _pieces(chat, turns, prompt):
        new = [token_id] if token_id is not None else part.tokenize(text, special=is_template)
        ids += new
        labelled += [train_on] * len(new)
    return ids, labelled


def _pieces(
    chat: ChatTemplate, turns: Sequence[Turn], prompt: bool
) -> Iterator[tuple[str, bool, bool, int | None]]:
    """Yield each text with two flags, for a text of the template and one to train on, and the id of an image token."""
    around = {"user": chat.user, "assistant": chat.assistant, "system": chat.system}
    if chat.default_system and not (turns and turns[0].role == "system"):
        turns = [Turn("system", (TurnPiece(chat.default_system),)), *turns]
    for number, turn in enumerate(turns):
        before, after = around[turn.role]
        is_open = prompt and turn.role == "assistant" and number == len(turns) - 1
        if before:
            yield before, True, False, None
        for piece in turn.pieces:
            yield piece.text, False, piece.train_on, piece.token_id
        if after and not is_open:
            yield after, True, bool(turn.pieces) and turn.pieces[-1].train_on, None
    if prompt and not (turns and turns[-1].role == "assistant") and chat.assistant[0]:
        yield chat.assistant[0], True, False, None
