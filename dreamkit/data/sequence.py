"""A document becomes token ids, labels and slots: the published layout.

    <s> text <dream_start> Q x patch <dream_end> <im_start> V x patch <im_end> text </s>

The Q patch embeddings give way to the dream queries, the V ones to projected vision tokens. `<dream_start>` is learned:
it is how the model decides to draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image as PIL

from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import DocumentError
from dreamkit.recipe.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.parts.language import LanguageModel

IGNORED = -100  # the label that carries no loss, as in torch's cross entropy


@dataclass
class Sequence:
    """Token ids, labels (`IGNORED` where nothing is learned), and where the slots of which pictures begin.

    `reads` and `draws` pair the index of the first patch with the picture for it. `weight` 0 makes it a dummy, whose
    losses count for nothing.
    """

    name: str
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    reads: list[tuple[int, Picture]] = field(default_factory=list)
    draws: list[tuple[int, Picture]] = field(default_factory=list)
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, ids: list[int], train_on: bool) -> None:
        self.ids += ids
        self.labels += ids if train_on else [IGNORED] * len(ids)

    @property
    def targets(self) -> int:
        """Labels that a preceding token can be asked for: the first one never counts."""
        return sum(label != IGNORED for label in self.labels[1:])


class Sequencer:
    """Turns documents into sequences for one language model, vocabulary, and number of slots an image."""

    def __init__(
        self,
        language_model: LanguageModel,
        token_ids: Mapping[str, int],
        special_tokens: SpecialTokens,
        *,
        vision_tokens: int,
        dream_queries: int,
        max_length: int | None = None,
    ) -> None:
        self.language_model = language_model
        self.vision_tokens = vision_tokens
        self.dream_queries = dream_queries
        self.max_length = max_length or language_model.spec.max_length
        ids = {f.name: token_ids[getattr(special_tokens, f.name)] for f in fields(special_tokens)}
        self.dream_start = ids["dream_start"]
        self.dream_end = ids["dream_end"]
        self.dream_slots = [ids["dream_patch"]] * dream_queries
        self.read_slots = [ids["image_patch"]] * vision_tokens
        self.image_start = ids["image_start"]
        self.image_end = ids["image_end"]

    def sequence(self, document: Document) -> Sequence:
        """The sequence a model is trained on.

        Raises:
            DocumentError: nothing in it is learned, or it is longer than `max_length`.
        """
        sequence = self._begin(document)
        if not document.is_conversation and document.segments:
            sequence.append([self.language_model.spec.eos_ids[0]], train_on=document.segments[-1].train_on)
        if not sequence.targets and not sequence.draws:
            raise DocumentError(
                f"{document.name}: nothing to learn: all {len(sequence)} labels are masked and no image is drawn; "
                "mark a text with train_on=True, give the assistant a turn, or draw an image"
            )
        return self._checked(sequence, "shorten it or raise train.max_length")

    def prompt(self, document: Document) -> Sequence:
        """The sequence a model goes on from: no end token, and in a conversation the assistant's turn left open."""
        return self._checked(self._after_something(self._begin(document, prompt=True)), "shorten it")

    def unconditional(self) -> Sequence:
        """What classifier-free guidance draws from without a prompt: the dream queries after an empty text."""
        sequence = self._after_something(self._empty("unconditional", weight=0.0))
        self._draw(sequence, None, train_on=False)
        return sequence

    def dummy(self, *, read: bool, draw: bool) -> Sequence:
        """A sequence of no weight with a label, and an image to read or draw where asked for."""
        sequence = self._empty("dummy", weight=0.0)
        blank = blank_picture()
        if read:
            self._read(sequence, blank)
        if draw:
            self._draw(sequence, blank, train_on=False)
        self._after_something(sequence).append([self.language_model.spec.eos_ids[0]], train_on=True)
        return sequence

    def _after_something(self, sequence: Sequence) -> Sequence:
        """What a first token can follow: where there is no bos token, the end of another text."""
        if not sequence.ids:
            sequence.append([self.language_model.spec.eos_ids[0]], train_on=False)
        return sequence

    def _empty(self, name: str, weight: float = 1.0) -> Sequence:
        sequence = Sequence(name, weight=weight)
        if self.language_model.spec.bos_id is not None:
            sequence.append([self.language_model.spec.bos_id], train_on=True)
        return sequence

    def _begin(self, document: Document, prompt: bool = False) -> Sequence:
        sequence = self._empty(document.name)
        for segment in self._templated(document, prompt):
            if isinstance(segment, Text):
                ids = self.language_model.tokenize(segment.text, special=isinstance(segment, _TemplateText))
                sequence.append(ids, segment.train_on)
            else:
                if segment.draw and not prompt:
                    self._draw(sequence, segment.picture, segment.train_on)
                if segment.read or prompt:
                    self._read(sequence, segment.picture)
        return sequence

    def _draw(self, sequence: Sequence, picture: Picture | None, train_on: bool) -> None:
        sequence.append([self.dream_start], train_on)
        if picture is not None:
            sequence.draws.append((len(sequence), picture))
        sequence.append([*self.dream_slots, self.dream_end], train_on=False)

    def _read(self, sequence: Sequence, picture: Picture) -> None:
        sequence.append([self.image_start], train_on=False)
        sequence.reads.append((len(sequence), picture))
        sequence.append([*self.read_slots, self.image_end], train_on=False)

    def _templated(self, document: Document, prompt: bool) -> Iterator[Segment]:
        """The segments of a document, with the chat template's words around a conversation's turns."""
        if not document.is_conversation:
            yield from document
            return
        chat = self.language_model.chat
        if document.segments[0].role != "system" and chat.default_system:
            yield from _turn(chat.system, [Text(chat.default_system, train_on=False)])
        turns = [
            (role, list(segments)) for role, segments in groupby(document, key=lambda segment: segment.role)
        ]
        for number, (role, segments) in enumerate(turns):
            if role == "assistant":
                is_open = prompt and number == len(turns) - 1
                yield from _turn(
                    chat.assistant, segments, train_on_end=segments[-1].train_on, is_open=is_open
                )
            else:
                yield from _turn(
                    chat.user if role == "user" else chat.system, [_unlearned(s) for s in segments]
                )
        if prompt and turns[-1][0] != "assistant":
            yield from _turn(chat.assistant, [], is_open=True)

    def _checked(self, sequence: Sequence, remedy: str) -> Sequence:
        if len(sequence) > self.max_length:
            raise DocumentError(
                f"{sequence.name}: {len(sequence)} tokens, but a row holds {self.max_length}; {remedy} "
                f"(an image read takes {self.vision_tokens + 2} tokens, one drawn {self.dream_queries + 2})"
            )
        return sequence


def blank_picture() -> Picture:
    """What stands in where no picture is to be read or drawn."""
    return PIL.new("RGB", (16, 16))


class _TemplateText(Text):
    """Text of a chat template, in which special tokens are parsed; nobody's words are."""


def _turn(
    around: tuple[str, str], segments: list[Segment], *, train_on_end: bool = False, is_open: bool = False
) -> Iterator[Segment]:
    before, after = around
    if before:
        yield _TemplateText(before, train_on=False)
    yield from segments
    if after and not is_open:
        yield _TemplateText(after, train_on=train_on_end)


def _unlearned(segment: Segment) -> Segment:
    if isinstance(segment, Text):
        return Text(segment.text, train_on=False, role=segment.role)
    return Image(segment.picture, segment.read, segment.draw, train_on=False, role=segment.role)
