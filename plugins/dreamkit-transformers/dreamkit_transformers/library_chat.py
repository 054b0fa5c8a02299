"""Conversations in a tokenizer's own chat template: the ids of the library's `apply_chat_template`, and their labels.

The library renders a conversation to one text and tokenizes it whole. Names of special tokens in the speakers' texts
are plain text, as with the library's `sanitize_control_tokens`. So are those of other added tokens that the template
writes, such as `<think>`, but not in an answer: a model that reasons writes them. An image is its special token's name
in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate, DocumentError, Turn, TurnPiece, excerpt
from dreamkit_transformers.chat_encoding import Encoding, contents, placeholders
from dreamkit_transformers.chat_rendering import (
    Messages,
    Rendering,
    common_length,
    prompt_options,
    roles_of,
    special_names,
    tokenizer_name,
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
ANSWERED = PROBES[1], PROBES[3], PROBES[4]  # those whose answers have labels


class LibraryChat:
    """The chat template of `tokenizer`.

    Attributes:
        turn_ends: texts after an answer: at the end of a conversation, and before another turn.
        written_ids: ids with labels around the words of an answer, and those of the words.
        template_names: names of added tokens in the template's own text, special or not.
        problem: reason why every conversation is refused, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.turn_ends: tuple[str, ...] = ()
        self.written_ids: frozenset[int] = frozenset()
        self.template_names = self._template_names()
        self.problem: str | None = None
        errors = [error for probe in ANSWERED if (error := self._add_labels_of(probe)) is not None]
        # a template for one answer alone, or one that requires or refuses a system turn, is no problem
        self.problem = self._difference() if len(errors) < len(ANSWERED) else _of_template(errors[0])

    def tokens(self, turns: Sequence[Turn], prompt: bool) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and a flag for each: train on the token.

        A prompt has the library's generation prompt, or ends with the assistant's open turn. Labels begin where such a
        prompt ends: the model writes what the template puts before an answer and not into the prompt.

        Raises:
            DocumentError: the template refuses the conversation, or the labels cannot be found.
        """
        if self.problem is not None:
            raise DocumentError(self.problem)
        special = special_names(self.tokenizer)
        control = special | self.template_names
        names = {"system": control, "user": control, "assistant": special}
        plain = placeholders(names, turns)
        texts = [
            contents(turn, {name: plain[name] for name in plain.keys() & names[turn.role]}) for turn in turns
        ]
        messages = [
            {"role": turn.role, "content": "".join(each)} for turn, each in zip(turns, texts, strict=True)
        ]
        rendering = Rendering(self.tokenizer, messages, prompt)
        encoding = Encoding(self.tokenizer, rendering.text, {mark: name for name, mark in plain.items()})
        labelled = [False] * len(encoding.ids)
        for number, turn in enumerate(turns):
            if not prompt and turn.role == "assistant" and any(piece.train_on for piece in turn.pieces):
                for start, end in rendering.trained_ranges(number, turn, texts[number]):
                    first, last = encoding.tokens_before(start), encoding.tokens_before(end)
                    labelled[first:last] = [True] * max(0, last - first)
        return encoding.ids, labelled

    def _template_names(self) -> frozenset[str]:
        """Return the names of added tokens in the template's source, and in conversations without contents.

        Templates join names from texts, such as `'<|' + message['role'] + '|>'`. Tokens of whitespace are left out.
        """
        template = self.tokenizer.chat_template
        texts = [template] if isinstance(template, str) else [*template.values()]
        for probe in PROBES:
            messages = _messages([(role, "") for role, _ in probe])
            for prompt in (False, True):
                with suppress(DocumentError):
                    texts.append(Rendering(self.tokenizer, messages, prompt).text)
        names = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        return frozenset(name for name in names if name.strip() and any(name in text for text in texts))

    def _add_labels_of(self, probe: Probe) -> DocumentError | None:
        """Extend `turn_ends` and `written_ids` by those of the first answer and of all answers in `probe`.

        Return why the template does not make this conversation, or None.
        """
        number = next(at for at, (role, _) in enumerate(probe) if role == "assistant")
        try:
            ids, labelled = self.tokens(_turns(probe, train_on=True), prompt=False)
            turn_end = Rendering(self.tokenizer, _messages(probe)).turn_end(number)
        except DocumentError as error:
            return error
        self.written_ids |= {index for index, is_labelled in zip(ids, labelled, strict=True) if is_labelled}
        self.turn_ends += (turn_end,)
        return None

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
                try:
                    actual, _ = self.tokens(turns, prompt)
                except DocumentError as error:
                    return _of_template(error)
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


def problem_of(layout: LibraryChat | ChatTemplate) -> str | None:
    """Return the reason why every conversation is refused, or None."""
    return layout.problem if isinstance(layout, LibraryChat) else None


def _of_template(error: DocumentError) -> str:
    """Return the message of an error with the remedy for a template that makes no conversation at all."""
    return f"{str(error).rpartition('; ')[0]}; name a tokenizer with another template"


def _turns(probe: Probe, train_on: bool = False) -> list[Turn]:
    return [Turn(role, (TurnPiece(text, train_on=train_on),)) for role, text in probe]  # type: ignore[arg-type]


def _messages(probe: Probe) -> Messages:
    return [{"role": role, "content": text} for role, text in probe]
