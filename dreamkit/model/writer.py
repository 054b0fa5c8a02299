"""One document that is being written: its settings, its text and images so far, and its next inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreamkit.document import Document, Image, Role, Segment
from dreamkit.model.beam_search import Hypothesis
from dreamkit.model.events import (
    DocumentDone,
    DocumentFailed,
    EndReason,
    Event,
    ImageDone,
    ImageStarted,
    TextPiece,
    TokenScore,
)
from dreamkit.model.finite import logits_error
from dreamkit.model.text_stream import TextStream, lead_byte
from dreamkit.model.token_choice import TokenChooser
from dreamkit.recipe.generation_section import GenerationSection

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.data.sequence import Sequencer
    from dreamkit.model.model import DreamModel

# Between the seeds of the noise of neighbouring images: 2**32 divided by the golden ratio. Its multiples are far apart
# modulo 2**32, and torch's generator of the CPU uses these bits of a seed alone.
SEED_STEP = 0x9E3779B9


class WrittenLanguage:
    """The tokens that a model writes, and the lengths that they take; the same for all documents.

    Attributes:
        image_length: positions of an image: dream queries and vision tokens, each between two special tokens.
    """

    def __init__(self, model: DreamModel, sequencer: Sequencer) -> None:
        self.model, self.sequencer = model, sequencer
        self.language_model = model.language_model
        self.max_length = self.language_model.spec.max_length
        self.dream_start = sequencer.dream_start
        self.image_length = sequencer.dream_queries + sequencer.vision_tokens + 4

    @cached_property
    def lead(self) -> int | None:
        """The token of `lead_byte`."""
        return lead_byte(self.language_model)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids of the tokens that end a document."""
        return frozenset(self.language_model.spec.eos_ids)

    @cached_property
    def suppressed(self) -> dict[bool, Tensor]:
        """Ids that are never written, by the answer to: may the document draw.

        End tokens are never among them. With `ignore_eos` they stay in the ids, and `decode` leaves them out.
        """
        names = {*self.model.token_ids.values(), *self.language_model.suppressed_ids} - self.eos_ids
        device = self.model.dream_queries.device
        return {
            draws: torch.tensor(sorted(ids), dtype=torch.long, device=device)
            for draws, ids in ((True, names - {self.dream_start}), (False, names))
        }


@dataclass(eq=False)
class Writer:
    """An unfinished document.

    Raises:
        DocumentError: the prompt is longer than the model's length.

    Attributes:
        number: number of the document in the engine.
        inputs: the next inputs (t, D) of the language model, or (R, t, D) of R rows; none while the document waits.
        names: names of the positions that the language model has of the document, in its first row, or gets next, as
            in `InputMaker`.
        sequence: tokens of the prompt.
        token: the token that was written last.
        position: number of positions that the language model has of the document.
        drawing: flag: the document waits for an image, whose dream token is written.
        reason: why the document ends, once it does.
    """

    number: int
    prompt: Document
    options: GenerationSection
    seed: int
    language: WrittenLanguage
    position: int = 0
    token: int = -1
    tokens: int = 0
    images: int = 0
    drawing: bool = False
    reason: EndReason | None = None
    written: list[Segment] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)  # of tokens that no event has yet

    def __post_init__(self) -> None:
        sequencer, options = self.language.sequencer, self.options
        self.sequence = sequencer.prompt(self.prompt)
        self.inputs = torch.empty(0, self.language.language_model.spec.dim)
        self.names: list[int] = []
        self.earlier_images = sum(image.draw for image in self.prompt.images)
        earlier = sequencer.continued_texts(self.prompt)
        self.text = TextStream(self.language.language_model, self.language.lead, earlier, options.stop)
        is_penalized = options.repetition_penalty != 1
        self.chooser = TokenChooser(
            options,
            torch.Generator().manual_seed(self.seed),
            self.language.suppressed[options.most_images > 0],
            self.language.dream_start,
            set(self.sequence.ids) if is_penalized else set(),
        )

    @property
    def length(self) -> int:
        """The positions of the prompt."""
        return len(self.sequence)

    @property
    def room(self) -> int:
        """The positions left within the model's length."""
        return self.language.max_length - self.position

    @property
    def most_positions(self) -> int:
        """The positions that the document may reach."""
        options = self.options
        written = options.max_tokens + options.most_images * self.language.image_length
        return min(self.language.max_length, self.length + written)

    @property
    def limit(self) -> EndReason | None:
        """The limit that ends the document now, or None."""
        if self.room < max(self.inputs.shape[-2], self.length - self.position):
            return "length"
        return "tokens" if self.tokens >= self.options.max_tokens and not self.drawing else None

    @property
    def running(self) -> Sequence[Hypothesis]:
        """The hypotheses of the rows. Here it is one, of which the last token is enough."""
        return [Hypothesis((self.token,))]

    def feed(self, inputs: Tensor, names: Sequence[int]) -> None:
        """Set the next inputs (t, D) and their names; with several rows, those (R, D) of a token in each row."""
        self.inputs = inputs
        self.names += names

    def noise(self) -> torch.Generator:
        """Return the generator of the next image's noise, a function of the seed and the image's number alone.

        The number counts the drawn images of the whole document, so that a continued document has the same images.
        """
        number = self.earlier_images + self.images
        return torch.Generator().manual_seed((self.seed + number * SEED_STEP) % 2**64)

    def write(self, logits: Tensor) -> Iterator[Event]:
        """Write one token: text, the end, or the start of an image. `logits` is (1, vocabulary).

        Raises:
            DreamkitError: the logits are not finite.
        """
        self.tokens += 1
        score = self.chooser.choose(logits[0])
        if score is None:
            raise logits_error(self.prompt.name, self.tokens)
        token, options = score.token, self.options
        if options.log_probs is not None or options.dream_probs:
            self.scores.append(score)
        if token in self.language.eos_ids and not options.ignore_eos:
            self.reason = "end"
        elif token == self.language.dream_start and self.images == options.max_images:
            # the model wants one more image than it may draw
            self.reason = "images"
        elif token == self.language.dream_start and self.room < self.language.image_length:
            self.reason = "length"
        elif token == self.language.dream_start:
            yield from self._flush()
            yield ImageStarted(self.number, self.images, self._take_scores())
            self.drawing = True
        else:
            yield from self._yield_text(token)
            self.token = token
            self.reason = "stop" if self.text.is_stopped else None

    def add_image(self, picture: Picture) -> ImageDone:
        """Add a drawn image."""
        event = ImageDone(self.number, self.images, picture)
        self.written.append(Image(picture, draw=True, role=self._role))
        self.images += 1
        self.drawing = False
        return event

    def end(self, reason: EndReason) -> Iterator[Event]:
        """Finish the document."""
        self.reason = reason
        try:
            rest = [*self._flush()]
        except Exception as error:  # of the tokenizer
            yield from self.fail(error)
            return
        yield from rest
        yield DocumentDone(self.number, self.result(), reason, self._take_scores())

    def fail(self, error: Exception) -> Iterator[Event]:
        """Finish the document by an error."""
        with suppress(Exception):  # the text itself may be what failed
            yield from [*self._flush()]
        yield DocumentFailed(self.number, self.result(), error)

    def result(self) -> Document:
        """Return the prompt with what is written so far, without unfinished text."""
        return Document((*self.prompt.segments, *self.written), name=self.prompt.name)

    @property
    def _role(self) -> Role | None:
        return "assistant" if self.prompt.is_conversation else None

    def _yield_text(self, token: int | None = None) -> Iterator[Event]:
        """Yield the text that `token` completes; without a token, the rest of the text since the last image."""
        if (new := self.text.take(token)) is not None:
            yield TextPiece(self.number, *new, self._take_scores(len(new[1])))

    def _flush(self) -> Iterator[Event]:
        """Yield the rest of the text since the last image, and add it to the document."""
        yield from self._yield_text()
        text = self.text.segment(self._role)
        if text is not None or self.text.is_stopped:
            earlier = self.text.earlier_texts()
            unchanged = self.prompt.segments[: len(self.prompt) - len(earlier)]
            self.prompt = replace(self.prompt, segments=(*unchanged, *earlier))
        if text is not None:
            self.written.append(text)
        self.text = TextStream(self.language.language_model, self.language.lead, (), self.options.stop)

    def _take_scores(self, tokens: int | None = None) -> tuple[TokenScore, ...]:
        """Return the scores of the next tokens for an event; None: of all that are left."""
        taken = self.scores[:tokens]
        del self.scores[:tokens]
        return tuple(taken)
