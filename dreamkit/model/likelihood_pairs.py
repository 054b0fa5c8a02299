"""Pairs of a prompt and a continuation, as the tokens that a model reads and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from dreamkit.data.continuation import with_continuation
from dreamkit.data.sequence import Sequence as TokenSequence, Sequencer
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, count, describe_value, surrogate_problem

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


@dataclass(frozen=True, eq=False)
class Pair:
    """A continuation to score after a prompt.

    Attributes:
        name: name in errors.
        inputs: the tokens that the model reads: the prompt and the continuation without its last token.
        ids: ids of the continuation; the last positions of `inputs`, as many, predict them.
        image_keys: key of each image that `inputs` reads; equal keys are the same object.
    """

    name: str
    inputs: TokenSequence
    ids: list[int]
    image_keys: tuple[int, ...] = ()


def pairs_of(model: DreamModel, prompts: Any, continuations: Any) -> list[Pair]:
    """Return the pairs of equally many prompts and continuations.

    Arguments and errors are those of `DreamModel.log_likelihood`.
    """
    for name, values in (("prompts", prompts), ("continuations", continuations)):
        if not isinstance(values, Sequence) or isinstance(values, str | bytes | Document):
            raise DocumentError(
                f"{name}: expected a list, got {describe_value(values)}; pass a list with an item for each pair"
            )
    if len(prompts) != len(continuations):
        raise DocumentError(
            f"expected as many prompts as continuations, got {count(len(prompts), 'prompt')} and "
            f"{count(len(continuations), 'continuation')}; name a prompt again for each of its continuations"
        )
    return [*_pairs(_Tokens(model), prompts, continuations)]


def _pairs(tokens: _Tokens, prompts: Sequence[Any], continuations: Sequence[Any]) -> Iterator[Pair]:
    keys: dict[int, int] = {}
    for number, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        name = f"pair {number}"
        try:
            sequence, ids = tokens.pair(prompt, continuation)
        except DocumentError as error:
            raise DocumentError(f"{name}: {error}") from error
        # by identity: `prompts` keep the images alive; numbered, so that the order of pairs is the same in each run
        images = tuple(keys.setdefault(id(picture), len(keys)) for _, picture in sequence.reads)
        yield Pair(name, replace(sequence, ids=sequence.ids + ids[:-1]), ids, images)


class _Tokens:
    """The tokens of prompts and continuations for one model."""

    def __init__(self, model: DreamModel) -> None:
        self.sequencer: Sequencer = model.sequencer()
        self.tokenize = model.language_model.tokenize
        self.vocabulary = max(model.language_model.spec.vocab_size, 1 + max(model.token_ids.values()))

    def pair(self, prompt: Any, continuation: Any) -> tuple[TokenSequence, list[int]]:
        """Return the tokens of a prompt, and the ids of its continuation."""
        sequence, ids = self._tokens(prompt, continuation)
        if not ids:
            joined = f" for {describe_value(continuation)}, which the tokenizer joins with the prompt; pass token ids"
            raise DocumentError(
                f"continuation: expected at least one token, got none{joined if continuation else ''}"
            )
        most = self.sequencer.max_length + 1  # the last token is not read
        if len(sequence) + len(ids) > most:
            raise DocumentError(
                f"{sequence.name}: expected at most {count(most, 'token')} with the continuation, got {len(sequence)} "
                f"and {len(ids)}; shorten one of them, or score a long text in windows of token ids"
            )
        return sequence, ids

    def _tokens(self, prompt: Any, continuation: Any) -> tuple[TokenSequence, list[int]]:
        for name, value in (("prompt", prompt), ("continuation", continuation)):
            if isinstance(value, str) and (problem := surrogate_problem(value)):
                raise DocumentError(f"{name}: {problem}")
        if isinstance(prompt, str):
            prompt = Document((Text(prompt),) if prompt else (), name="prompt")
        if not isinstance(continuation, str):
            return self._prompt(prompt), self._checked(continuation, "continuation", "a text or token ids")
        if isinstance(prompt, Document):
            return with_continuation(self.sequencer, prompt, continuation)
        return self._prompt(prompt), self.tokenize(continuation)

    def _prompt(self, prompt: Any) -> TokenSequence:
        if isinstance(prompt, Document):
            return self.sequencer.prompt(prompt)
        ids = self._checked(prompt, "prompt", "a document, a text or token ids")
        return TokenSequence("prompt", ids) if ids else self.sequencer.prompt(Document(()))

    def _checked(self, ids: Any, name: str, expected: str) -> list[int]:
        """Return token ids as integers."""
        is_array = hasattr(ids, "tolist")  # of numpy, torch or the standard library
        if is_array or not isinstance(ids, Sequence) or isinstance(ids, str | bytes | bytearray):
            raise DocumentError(
                f"{name}: expected {expected} (a list of integers), got {describe_value(ids)}"
                f"{'; pass ids.tolist()' if is_array else ''}"
            )
        for place, token in enumerate(ids):
            is_integer = isinstance(token, Integral) and not isinstance(token, bool)
            if not is_integer or not 0 <= int(token) < self.vocabulary:
                is_several = name == "continuation" and isinstance(token, Sequence)
                raise DocumentError(
                    f"{name}: expected integers from 0 to {self.vocabulary - 1}, got {describe_value(token)} at index "
                    f"{place}{'; name the prompt again for each of its continuations' if is_several else ''}"
                )
        return [int(token) for token in ids]
