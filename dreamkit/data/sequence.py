"""Sequences: the token ids, labels and slots of a document, in the published layout (arXiv 2309.11499).

    <s> text <dream_start> Q x patch <dream_end> <im_start> V x patch <im_end> text </s>

Dream queries replace the Q patch embeddings, projected vision tokens the V ones. `<dream_start>` has a label: with this
token the model starts an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image as PIL

from dreamkit.document import Document, Role, Segment, Text
from dreamkit.errors import DocumentError, count
from dreamkit.recipe.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.parts.language import LanguageModel

IGNORED = -100  # the label without a loss, as in torch's cross entropy


@dataclass
class Sequence:
    """The tokens of a document.

    Attributes:
        name: name of the document.
        ids: token ids.
        labels: label of each token, `IGNORED` for none.
        reads: images to read, each with the index of its first patch token.
        draws: images to draw, each with the index of its first patch token.
        weight: weight of the losses; 0 in a dummy.
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
        """Append tokens, with labels if `train_on`."""
        self.ids += ids
        self.labels += ids if train_on else [IGNORED] * len(ids)

    @property
    def targets(self) -> int:
        """Number of labels that a preceding token predicts: the first token's label does not count."""
        return sum(label != IGNORED for label in self.labels[1:])


class Sequencer:
    """A converter of documents to sequences.

    Args:
        language_model: part with tokenizer and chat template.
        token_ids: ids of the special tokens by their names.
        special_tokens: names of the tokens around images.
        vision_tokens: number V of slots of an image to read.
        dream_queries: number Q of slots of an image to draw.
        max_length: greatest number of tokens of a sequence; None is that of the language model.
    """

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
        self.special_ids = frozenset(ids.values())

    def sequence(self, document: Document) -> Sequence:
        """Return the training sequence of a document.

        Raises:
            DocumentError: it has nothing to train on, or is longer than `max_length`.
        """
        sequence = self._begin(document)
        if not document.is_conversation and document.segments:
            sequence.append([self.language_model.spec.eos_ids[0]], train_on=document.segments[-1].train_on)
        if not sequence.targets and not sequence.draws:
            raise DocumentError(
                f"{document.name}: nothing to train on: {count(len(sequence), 'token')} without a label and no image "
                "to draw; set train_on=True in a text, or add a turn of the assistant or an image to draw"
            )
        return self._check_length(sequence, "shorten it or raise train.max_length")

    def prompt(self, document: Document) -> Sequence:
        """Return the sequence that generation continues: without an end token, or with an open turn of the assistant.

        Raises:
            DocumentError: it is longer than `max_length`.
        """
        sequence = self._with_start(self._begin(document, prompt=True))
        # Generation never reads the last token that it writes, so a document that it returned may be 1 token longer.
        return self._check_length(sequence, "shorten it", beyond=bool(self.continued_texts(document)))

    def unconditional(self) -> Sequence:
        """Return the sequence of an image without a prompt, for classifier-free guidance."""
        sequence = self._with_start(self._empty("unconditional", weight=0.0))
        self._draw(sequence, None, train_on=False)
        return sequence

    def dummy(self, *, read: bool, draw: bool) -> Sequence:
        """Return a sequence of weight 0 with a label, and with an image to read or draw if these are true."""
        sequence = self._empty("dummy", weight=0.0)
        blank = blank_picture()
        if read:
            self._read(sequence, blank)
        if draw:
            self._draw(sequence, blank, train_on=False)
        self._with_start(sequence).append([self.language_model.spec.eos_ids[0]], train_on=True)
        return sequence

    def _with_start(self, sequence: Sequence) -> Sequence:
        """Start an empty `sequence` (no bos) with an unlabelled eos for its first token to follow."""
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
        for (is_written, _), group in groupby(self._templated(document, prompt), key=_written_role):
            segments = list(group)
            reads_ids = is_written and self._can_read_ids(segments)
            for segment in segments:
                if isinstance(segment, Text):
                    sequence.append(self._text_ids(segment, reads_ids), segment.train_on)
                else:
                    if segment.draw:
                        self._draw(sequence, segment.picture, segment.train_on)
                    if segment.read:
                        self._read(sequence, segment.picture)
        return sequence

    def _text_ids(self, text: Text, reads_ids: bool) -> list[int]:
        if reads_ids and text.ids is not None:
            return list(text.ids)
        return self.language_model.tokenize(text.text, special=isinstance(text, _TemplateText))

    def continued_texts(self, prompt: Document) -> list[Text]:
        """Return the texts at the end of `prompt` that a model wrote without an image between them.

        Generation continues them: a word, or the bytes of a character, may go on. They are empty if this language model
        did not write them.
        """
        texts: list[Text] = []
        for segment in reversed(prompt.segments):
            if (
                not isinstance(segment, Text)
                or segment.ids is None
                or segment.role not in (None, "assistant")
            ):
                break
            texts.insert(0, segment)
        return texts if self._can_read_ids(texts) else []

    def _can_read_ids(self, texts: Iterable[Segment]) -> bool:
        """Return True if neighbouring texts have ids that this language model decodes to their text.

        They are decoded together, since tokens of two texts can form one character.
        """
        written = [text for text in texts if isinstance(text, Text)]
        ids = [token for text in written for token in text.ids or ()]
        is_own = all(0 <= token < self.language_model.spec.vocab_size for token in ids)
        return (
            is_own
            and self.special_ids.isdisjoint(ids)
            and self.language_model.decode(ids) == "".join(text.text for text in written)
        )

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
        """Yield the segments of a document, with the text of the chat template around a conversation's turns."""
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
                    chat.user if role == "user" else chat.system, [_without_training(s) for s in segments]
                )
        if prompt and turns[-1][0] != "assistant":
            yield from _turn(chat.assistant, [], is_open=True)

    def _check_length(self, sequence: Sequence, fix: str, *, beyond: int = 0) -> Sequence:
        if len(sequence) > self.max_length + beyond:
            raise DocumentError(
                f"{sequence.name}: expected at most {count(self.max_length, 'token')}, got {len(sequence)}; {fix} "
                f"(an image to read takes {count(self.vision_tokens + 2, 'token')}, "
                f"one to draw {self.dream_queries + 2})"
            )
        return sequence


def blank_picture() -> Picture:
    """Return the blank PIL image of a dummy."""
    return PIL.new("RGB", (16, 16))


class _TemplateText(Text):
    """A text of the chat template: special tokens are parsed in it, and in no other text."""


def _turn(
    around: tuple[str, str], segments: list[Segment], *, train_on_end: bool = False, is_open: bool = False
) -> Iterator[Segment]:
    before, after = around
    if before:
        yield _TemplateText(before, train_on=False)
    yield from segments
    if after and not is_open:
        yield _TemplateText(after, train_on=train_on_end)


def _without_training(segment: Segment) -> Segment:
    return replace(segment, train_on=False)


def _written_role(segment: Segment) -> tuple[bool, Role | None]:
    """Return True and the role of a text that a model wrote; neighbours of one role continue each other."""
    is_written = isinstance(segment, Text) and segment.ids is not None
    return is_written, segment.role if is_written else None
