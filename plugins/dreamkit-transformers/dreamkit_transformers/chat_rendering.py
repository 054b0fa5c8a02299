"""Conversations as texts: rendered by the library in a tokenizer's chat template, and the places of answers in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import DocumentError, Turn, describe_error, excerpt

UNUSED = range(0xF0000, 0xFFFFE)  # characters for private use (Unicode's plane 15), which stand for others

Messages = list[dict[str, str]]
Around = tuple[str, str]  # texts of the template before and after a message


class Rendering:
    """The text of a conversation in the chat template.

    A long conversation needs as few renderings as a short one: inner messages are found in one rendering, and those
    with the same texts of the template around them have the same labels around them.

    Raises:
        DocumentError: the template refuses the conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt: bool = False) -> None:
        self.tokenizer = tokenizer
        self.messages = messages
        self.text = self._render(messages, **prompt_options(messages, prompt))
        self._prompt_lengths: dict[Around | int, int] = {}
        self._end_lengths: dict[Around | int, int] = {}

    def trained_ranges(self, number: int, turn: Turn, contents: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield the ranges of characters to train on in an answer; `contents` are the texts of the turn's pieces.

        The first one begins after the prompt and the last one ends with the turn, if these pieces are trained on.
        """
        start, end = self.answer_range(number)
        flags = [piece.train_on for piece in turn.pieces]
        first = start - self._prompt_length(number, start) if flags[0] else start
        last = end + self._end_length(number, start, end) if flags[-1] else end
        if all(flags):
            yield first, last
            return
        # templates that shorten an answer cut its beginning, its reasoning
        offset = "".join(contents).rfind(self.text[start:end])
        if offset == -1:
            raise DocumentError(
                f"{tokenizer_name(self.tokenizer)} has a chat template that changes the text of an answer, turn "
                f"{number}, so its segments to train on cannot be found; set train_on to one value in the whole turn"
            )
        at = start - offset
        for place, (content, is_trained) in enumerate(zip(contents, flags, strict=True)):
            low, high = min(max(at, start), end), min(max(at + len(content), start), end)
            at += len(content)
            if is_trained:
                yield first if place == 0 else low, last if place == len(flags) - 1 else high

    def answer_range(self, number: int) -> tuple[int, int]:
        """Return the range of characters that depend on the content of message `number`.

        Raises:
            DocumentError: there is none.
        """
        if number < len(self.messages) - 1 and number in self._inner:
            return self._inner[number][0]
        mark = next(unused_characters([self.text]))
        marked = {**self.messages[number], "content": mark}
        other = self._render([*self.messages[:number], marked, *self.messages[number + 1 :]])
        before, has_mark, after = other.partition(mark)
        if not has_mark:
            raise DocumentError(
                f"{tokenizer_name(self.tokenizer)} has a chat template that leaves out an answer, turn {number} of "
                f"{roles_of(self.messages)}; shorten the conversation, or name a tokenizer with another template"
            )
        is_exact = self.text.startswith(before) and self.text.endswith(after)
        if is_exact and len(before) + len(after) <= len(self.text):
            return len(before), len(self.text) - len(after)
        start = common_length(self.text, other)
        end = len(self.text) - common_length(self.text[::-1], other[::-1])
        return start, max(start, end)

    def turn_end(self, number: int) -> str:
        """Return the template's text after an answer."""
        start, end = self.answer_range(number)
        return self.text[end : end + self._end_length(number, start, end)]

    @cached_property
    def _inner(self) -> dict[int, tuple[tuple[int, int], Around]]:
        """The ranges of all messages but the last in the text, and the template's texts around each.

        One rendering has a mark in place of each content. It is empty if its other texts are not those of the
        conversation, where a content is changed otherwise than by trimming or cutting it.
        """
        mark = next(unused_characters([self.text]))
        *inner, last = self.messages
        marked = [{**message, "content": f"{mark}{at}{mark}"} for at, message in enumerate(inner)]
        try:
            first, *others = re.split(f"{mark}(\\d+){mark}", self._render([*marked, last]))
        except DocumentError:
            return {}
        text, others = self.text + mark, [*others[:-1], *(each + mark for each in others[-1:])]
        places: dict[int, tuple[tuple[int, int], Around]] = {}
        at, before = len(first), first
        for number, after in zip(map(int, others[::2]), others[1::2], strict=True):
            content = self.messages[number]["content"]
            is_whole = text.startswith(content + after, at)
            end = at + len(content) if is_whole else text.find(after, at)
            if end == -1 or number in places or text[at:end] not in content:
                return {}
            places[number] = (at, end), (before, after)
            at, before = end + len(after), after
        return places if text.startswith(first) and at == len(text) else {}

    def _prompt_length(self, number: int, start: int) -> int:
        """Return the number of characters between the prompt of an answer and its `start`.

        It is 0 if the whole text does not begin with the prompt.
        """
        earlier = self.messages[:number]
        if not earlier or earlier[-1]["role"] == "assistant":
            return 0
        around = self._around(number)
        if around not in self._prompt_lengths:
            try:
                prompt = Rendering(self.tokenizer, earlier, prompt=True).text
            except DocumentError:  # no such prompt, so nothing precedes the answer's own text
                prompt = self.text[:start]
            is_before = self.text.startswith(prompt) and len(prompt) <= start
            self._prompt_lengths[around] = start - len(prompt) if is_before else 0
        return self._prompt_lengths[around]

    def _end_length(self, number: int, start: int, end: int) -> int:
        """Return the length of the template's text after the answer from `start` to `end`.

        It is the text after the answer in a conversation that ends there. If another special token follows here, such
        as `<|end|>` for `<|return|>`, the turn ends with that token.
        """
        if number == len(self.messages) - 1:
            return len(self.text) - end
        around = self._around(number)
        if around not in self._end_lengths:
            after = Rendering(self.tokenizer, self.messages[: number + 1]).turn_end(number)
            shared = end + common_length(after, self.text[end:])
            at, name = self._first_special(end)
            is_near = at <= shared or not self.text[end:at].strip()
            # a token that opens an answer never ends it
            opening = self.text[start - self._prompt_length(number, start) : start]
            is_end = name and is_near and name not in opening
            self._end_lengths[around] = (max(shared, at + len(name)) if is_end else shared) - end
        return self._end_lengths[around]

    def _around(self, number: int) -> Around | int:
        """Return the template's texts around a message, or its number if they are not known."""
        return self._inner[number][1] if number in self._inner else number

    def _first_special(self, start: int) -> tuple[int, str]:
        """Return the place and the name of the template's first special token from `start` on, or the end and ""."""
        texts = [message["content"] for message in self.messages]
        names = [name for name in special_names(self.tokenizer) if not any(name in text for text in texts)]
        places = [(at, name) for name in names if (at := self.text.find(name, start)) != -1]
        return min(places, key=lambda place: (place[0], -len(place[1])), default=(len(self.text), ""))

    def _render(self, messages: Messages, **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # templates are programs that raise any exception
            raise DocumentError(
                f"{tokenizer_name(self.tokenizer)} has a chat template that refuses {roles_of(messages)} "
                f"({describe_error(error)}); change the turns, or name a tokenizer with another template"
            ) from error


def prompt_options(messages: Messages, prompt: bool) -> dict[str, Any]:
    """Return the library's options for a prompt, whose last turn is open if it is the assistant's."""
    if not prompt:
        return {}
    is_open = bool(messages) and messages[-1]["role"] == "assistant"
    return {"continue_final_message": True} if is_open else {"add_generation_prompt": True}


def unused_characters(texts: Sequence[str]) -> Iterator[str]:
    """Yield characters that are in none of the texts."""
    return (character for character in map(chr, UNUSED) if not any(character in text for text in texts))


def roles_of(messages: Messages) -> str:
    """Return the roles of a conversation for an error message."""
    return f"a conversation of {excerpt(', '.join(message['role'] for message in messages) or 'no turns')}"


def special_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names of all special tokens."""
    return {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def tokenizer_name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer '{tokenizer.name_or_path}'"


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the number of equal elements at the start."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
