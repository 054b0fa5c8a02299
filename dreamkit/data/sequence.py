"""Sequences: the token ids, labels and slots of a document, in the published layout (arXiv 2309.11499).

    <s> text <dream_start> Q x patch <dream_end> <im_start> V x patch <im_end> text </s>

Dream queries replace the Q patch embeddings, projected vision tokens the V ones. `<dream_start>` has a label: with this
token the model starts an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image as PIL

from dreamkit.data.skipped import Skipped
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import DocumentError, count
from dreamkit.parts.conversation import Turn, TurnPiece
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
        ends: index after each segment; empty in a conversation, whose template puts tokens between segments.
        is_cut: flag: the document is longer, and its end is left out.
        place: place of the document in the run; None outside a run.
        skipped: documents that cannot be used at this place, which this one replaces.
    """

    name: str
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    reads: list[tuple[int, Picture]] = field(default_factory=list)
    draws: list[tuple[int, Picture]] = field(default_factory=list)
    weight: float = 1.0
    ends: list[int] = field(default_factory=list)
    is_cut: bool = False
    place: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, ids: list[int], train_on: bool) -> None:
        """Append tokens, with labels if `train_on`."""
        self.ids += ids
        self.labels += ids if train_on else [IGNORED] * len(ids)

    @property
    def is_trained(self) -> bool:
        """Flag: there is a label or an image to draw."""
        return bool(self.targets or self.draws)

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
        self.special_tokens = special_tokens
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
        return self.require_length(self.whole_sequence(document))

    def whole_sequence(self, document: Document) -> Sequence:
        """Return the training sequence of a document of any length.

        Raises:
            DocumentError: it has nothing to train on.
        """
        sequence = self.tokens(document)
        if not sequence.is_trained:
            raise DocumentError(
                f"{document.name}: nothing to train on: {count(len(sequence), 'token')} without a label and no image "
                "to draw; set train_on=True in a text, or add a turn of the assistant or an image to draw"
            )
        return sequence

    def tokens(self, document: Document) -> Sequence:
        """Return the training sequence of a document of any length, which may have nothing to train on."""
        sequence = self._begin(document)
        if not document.is_conversation and document.segments:
            sequence.append([self.language_model.spec.eos_ids[0]], train_on=document.segments[-1].train_on)
        return sequence

    def require_length(self, sequence: Sequence) -> Sequence:
        """Return a training sequence.

        Raises:
            DocumentError: it is longer than `max_length`.
        """
        return self._check_length(sequence, "shorten it or raise train.max_length")

    def prompt(self, document: Document) -> Sequence:
        """Return the sequence that generation continues: without an end token, or with an open turn of the assistant.

        Raises:
            DocumentError: it is longer than `max_length`.
        """
        return self.as_prompt(document, self.open_sequence(document))

    def open_sequence(self, document: Document) -> Sequence:
        """Return the sequence of a prompt of any length, which has no token if the prompt has none."""
        return self._begin(document, prompt=True)

    def as_prompt(self, document: Document, opened: Sequence) -> Sequence:
        """Return the sequence of a prompt, made from its open sequence, which it may change.

        Raises:
            DocumentError: it is longer than `max_length`.
        """
        # Generation never reads the last token that it writes, so a document that it returned may be 1 token longer.
        beyond = bool(self.continued_texts(document))
        return self._check_length(self._with_start(opened), "shorten it", beyond=beyond)

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
        if document.is_conversation:
            return self._conversation(document, prompt)
        sequence = self._empty(document.name)
        self._append_segments(sequence, document.segments)
        return sequence

    def _append_segments(self, sequence: Sequence, segments: Iterable[Segment]) -> None:
        for is_written, group in groupby(segments, key=_is_written):
            run = list(group)
            reads_ids = is_written and self._can_read_ids(run)
            for segment in run:
                if isinstance(segment, Text):
                    sequence.append(self._text_ids(segment, reads_ids), segment.train_on)
                else:
                    self._append_image(sequence, segment, segment.train_on)
                sequence.ends.append(len(sequence))

    def _append_image(self, sequence: Sequence, image: Image, train_on: bool) -> None:
        if image.draw:
            self._draw(sequence, image.picture, train_on)
        if image.read:
            self._read(sequence, image.picture)

    def _conversation(self, document: Document, prompt: bool) -> Sequence:
        """Return the tokens of a conversation: those of its chat template, and what a model wrote after a prompt."""
        end = self._written_end(document) if prompt else len(document)
        templated, written = document.segments[:end], document.segments[end:]
        turns = [
            Turn(role, tuple(map(self._turn_piece, segments)))
            for role, segments in groupby(templated, key=lambda segment: segment.role)
            if role is not None
        ]
        try:
            ids, labelled = self.language_model.conversation(turns, prompt)
        except DocumentError as error:
            raise DocumentError(f"{document.name}: {error}") from error
        sequence = Sequence(document.name)
        images = [segment for segment in templated if isinstance(segment, Image)]
        slots = [token for token in ids if token in (self.dream_start, self.image_start)]
        if slots != [self._image_token(image) for image in images]:
            raise DocumentError(
                f"{document.name}: expected one image token from the chat template for each image, in order, got "
                f"{len(slots)} for {len(images)}; the template leaves out or moves text, or has a name of "
                "special_tokens in its own text"
            )
        left = iter(images)
        for token, train_on in zip(ids, labelled, strict=True):
            if token in (self.dream_start, self.image_start):
                self._append_image(sequence, next(left), train_on)
            else:
                sequence.append([token], train_on)
        self._append_segments(sequence, written)
        return sequence

    def _turn_piece(self, segment: Segment) -> TurnPiece:
        train_on = segment.train_on and segment.role == "assistant"
        if isinstance(segment, Text):
            return TurnPiece(segment.text, train_on)
        name = self.special_tokens.dream_start if segment.draw else self.special_tokens.image_start
        return TurnPiece(name, train_on, self._image_token(segment))

    def _image_token(self, image: Image) -> int:
        return self.dream_start if image.draw else self.image_start

    def _written_end(self, document: Document) -> int:
        """Return the index of the first segment that a model wrote at the end of the last, open turn.

        Generation wrote its tokens after the rest in the chat template, so they follow that as they are.
        """
        start = len(document)
        while start and document.segments[start - 1].role == "assistant":
            start -= 1
        end = len(document)
        for is_written, group in groupby(reversed(document.segments[start:]), key=_is_written):
            run = list(group)[::-1]
            if not (self._can_read_ids(run) if is_written else all(map(_is_drawn, run))):
                break
            end -= len(run)
        return end or len(document)

    def _text_ids(self, text: Text, reads_ids: bool) -> list[int]:
        if reads_ids and text.ids is not None:
            return list(text.ids)
        return self.language_model.tokenize(text.text)

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


def _is_written(segment: Segment) -> bool:
    """Return True for a text that a model wrote; neighbours continue each other."""
    return isinstance(segment, Text) and segment.ids is not None


def _is_drawn(segment: Segment) -> bool:
    return isinstance(segment, Image) and segment.draw
