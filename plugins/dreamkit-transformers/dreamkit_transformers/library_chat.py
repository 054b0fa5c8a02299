"""Conversations in a tokenizer's own chat template: the ids of the library's `apply_chat_template`, and their labels.

The library renders a conversation to one text and tokenizes it whole. Names of special tokens in the speakers' texts
are plain text, as with the library's `sanitize_control_tokens`. Other added tokens, such as `<think>`, are tokens in
any text: the tokenizers have no other ids for them. An image is its special token's name in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, groupby, pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate, DocumentError, Turn, TurnPiece, excerpt
from dreamkit_transformers.chat_rendering import (
    Messages,
    Rendering,
    common_length,
    prompt_options,
    roles_of,
    special_names,
    tokenizer_name,
    unused_characters,
)

Probe = Sequence[tuple[str, str]]

# texts of conversations that are compared with the library's
QUESTION, ANSWER, FOLLOW_UP, SYSTEM = "What is this?", "A seven.", "And that?", "Be brief."
PROBES: list[Probe] = [
    (("user", QUESTION),),
    (("user", QUESTION), ("assistant", ANSWER)),
    (("user", QUESTION), ("assistant", ANSWER), ("user", FOLLOW_UP)),
    (("user", QUESTION), ("assistant", ANSWER), ("user", FOLLOW_UP), ("assistant", ANSWER)),
    (("system", SYSTEM), ("user", QUESTION), ("assistant", ANSWER)),
    (("user", f" {QUESTION}\n"), ("assistant", f"\n {ANSWER} "), ("user", FOLLOW_UP)),
    (("user", ""), ("assistant", ANSWER), ("user", QUESTION), ("assistant", "")),
]


class LibraryChat:
    """The chat template of `tokenizer`.

    Attributes:
        turn_ends: texts after an answer: at the end of a conversation, and before another turn.
        written_ids: ids with labels around the words of an answer, and those of the words.
        problem: reason why every conversation is refused, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.turn_ends: tuple[str, ...] = ()
        self.written_ids: frozenset[int] = frozenset()
        self.problem: str | None = None
        try:
            self._add_labels_of(PROBES[1])
            self.problem = self._difference()
        except DocumentError as error:
            self.problem = str(error)
        with suppress(DocumentError):  # a template for one answer alone is no problem
            self._add_labels_of(PROBES[3])

    def tokens(self, turns: Sequence[Turn], prompt: bool) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and a flag for each: train on the token.

        A prompt has the library's generation prompt, or ends with the assistant's open turn. Labels begin where such a
        prompt ends: the model writes what the template puts before an answer and not into the prompt.

        Raises:
            DocumentError: the template refuses the conversation, or the labels cannot be found.
        """
        if self.problem is not None:
            raise DocumentError(self.problem)
        plain = _placeholders(self.tokenizer, turns)
        contents = [_contents(turn, plain) for turn in turns]
        messages = [
            {"role": turn.role, "content": "".join(texts)}
            for turn, texts in zip(turns, contents, strict=True)
        ]
        rendering = Rendering(self.tokenizer, messages, prompt)
        encode = _Encoder(self.tokenizer, {character: name for name, character in plain.items()})
        ids = encode(rendering.text)
        labelled = [False] * len(ids)
        for number, turn in enumerate(turns):
            if not prompt and turn.role == "assistant" and any(piece.train_on for piece in turn.pieces):
                for start, end in rendering.trained_ranges(number, turn, contents[number]):
                    first, last = (common_length(ids, encode(rendering.text[:at])) for at in (start, end))
                    labelled[first:last] = [True] * max(0, last - first)
        return ids, labelled

    def _add_labels_of(self, probe: Probe) -> None:
        """Extend `turn_ends` and `written_ids` by those of the first answer and of all answers in `probe`."""
        ids, labelled = self.tokens(_turns(probe, train_on=True), prompt=False)
        self.written_ids |= {index for index, is_labelled in zip(ids, labelled, strict=True) if is_labelled}
        self.turn_ends += (Rendering(self.tokenizer, _messages(probe)).turn_end(1),)

    def _difference(self) -> str | None:
        """Return where the ids of a probe differ from the library's, or None; refused conversations have no ids."""
        for probe in PROBES:
            turns, messages = _turns(probe), _messages(probe)
            for prompt in (False, True):
                try:
                    expected: Any = self.tokenizer.apply_chat_template(
                        messages, return_dict=False, **prompt_options(messages, prompt)
                    )
                except Exception:  # templates are programs that raise any exception
                    continue
                actual, _ = self.tokens(turns, prompt)
                if actual != expected:
                    return self._describe_difference(messages, prompt, actual, expected)
        return None

    def _describe_difference(
        self, messages: Messages, prompt: bool, actual: list[int], expected: list[int]
    ) -> str:
        at = common_length(actual, expected)
        texts = [repr(self.tokenizer.decode(ids[max(0, at - 4) : at + 4])) for ids in (expected, actual)]
        kind = "the prompt of " if prompt else ""
        contents = ", ".join(excerpt(repr(message["content"])) for message in messages)
        return (
            f"{tokenizer_name(self.tokenizer)} does not tokenize the text of its chat template: expected the ids of "
            f"apply_chat_template, got others from token {at} on, {texts[1]} instead of {texts[0]}, for {kind}"
            f"{roles_of(messages)} ({contents}); name another tokenizer"
        )


def turn_ends(layout: LibraryChat | ChatTemplate) -> Sequence[str]:
    """Return the texts after an answer."""
    return layout.turn_ends if isinstance(layout, LibraryChat) else [layout.assistant[1]]


class _Encoder:
    """Tokenization of a rendered text.

    Attributes:
        plain: characters that stand for names of special tokens which are plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, plain: Mapping[str, str]) -> None:
        self.tokenizer = tokenizer
        self.plain = plain

    def __call__(self, text: str) -> list[int]:
        if not self.plain:
            return self._ids(text)
        first, *others = re.split(f"([{''.join(self.plain)}])", text)
        ids = self._ids(first)
        for piece in filter(None, others):
            ids += self._name_ids(self.plain[piece]) if piece in self.plain else self._inner_ids(piece)
        return ids

    def _name_ids(self, name: str) -> list[int]:
        """Return the ids of the name of a special token as plain text.

        Raises:
            DocumentError: the tokenizer has no other ids for it.
        """
        ids = self._inner_ids(name, split_special_tokens=True)
        if name != self.tokenizer.unk_token and self.tokenizer.convert_tokens_to_ids(name) in ids:
            raise DocumentError(
                f"{tokenizer_name(self.tokenizer)} reads '{excerpt(name)}' in a speaker's text as its special token; "
                "spell it otherwise"
            )
        return ids

    def _inner_ids(self, text: str, **options: bool) -> list[int]:
        """Return the ids of a text inside another one: after a line break, so that it gets no prefix space."""
        line_break = self._ids("\n")
        ids = self._ids(f"\n{text}", **options)
        return ids[len(line_break) :] if ids[: len(line_break)] == line_break else self._ids(text, **options)

    def _ids(self, text: str, **options: bool) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
        return list(encoded["input_ids"])


def _placeholders(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> dict[str, str]:
    """Return a character for each name of a special token in the speakers' texts, which have none of them."""
    runs = [run for turn in turns for is_image, run in _runs(turn) if not is_image]
    texts = ["".join(run) for run in runs]
    present = sorted(name for name in special_names(tokenizer) if any(name in text for text in texts))
    return dict(zip(present, unused_characters(texts), strict=False))


def _contents(turn: Turn, plain: Mapping[str, str]) -> list[str]:
    """Return the texts of a turn's pieces with a character in place of each name in `plain`.

    The longest name comes first. The character of a name over several pieces is in the first one.
    """
    pattern = re.compile("|".join(map(re.escape, sorted(plain, key=len, reverse=True))) or "(?!)")
    contents: list[str] = []
    for is_image, texts in _runs(turn):
        characters = list("".join(texts))
        for match in () if is_image else pattern.finditer("".join(texts)):
            characters[match.start() : match.end()] = [plain[match[0]], *[""] * (len(match[0]) - 1)]
        ends = accumulate(map(len, texts), initial=0)
        contents += ["".join(characters[start:end]) for start, end in pairwise(ends)]
    return contents


def _runs(turn: Turn) -> Iterator[tuple[bool, list[str]]]:
    """Yield the texts of neighbouring pieces that are all images, or all not, with a flag for images."""
    for is_image, pieces in groupby(turn.pieces, key=lambda piece: piece.token_id is not None):
        yield is_image, [piece.text for piece in pieces]


def _turns(probe: Probe, train_on: bool = False) -> list[Turn]:
    return [Turn(role, (TurnPiece(text, train_on=train_on),)) for role, text in probe]  # type: ignore[arg-type]


def _messages(probe: Probe) -> Messages:
    return [{"role": role, "content": text} for role, text in probe]
