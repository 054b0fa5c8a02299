"""The interleaved loop: decode text, draw at the dream token, read the image back, continue with text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamkit.document import Document, Image, Role, Segment, Text
from dreamkit.errors import DocumentError, DreamkitError, count, describe_value
from dreamkit.model.drawing import check_room, check_schedule, check_size, negative_document, to_picture
from dreamkit.model.events import (
    DenoisingStep,
    DocumentDone,
    EndReason,
    Event,
    ImageDone,
    ImageStarted,
    TextPiece,
    TokenScore,
)
from dreamkit.model.finite import check_drawn, finite_rows, logits_error
from dreamkit.model.session import Session
from dreamkit.model.text_stream import TextStream, lead_byte
from dreamkit.model.token_choice import TokenChooser
from dreamkit.parts.specs import Condition
from dreamkit.recipe.settings import generation_section

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel


# Between the seeds of the noise of neighbouring images: 2**32 divided by the golden ratio. Its multiples are far apart
# modulo 2**32, and torch's generator of the CPU uses these bits of a seed alone.
SEED_STEP = 0x9E3779B9
MAX_SEED = 2**64 - 1


@dataclass
class _Writer:
    """An unfinished document."""

    number: int
    prompt: Document
    seed: int
    inputs: Tensor  # (t, D), of the next `Session.feed`
    text: TextStream  # since the last image
    chooser: TokenChooser
    written: list[Segment] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)  # of tokens that no event has yet
    tokens: int = 0
    images: int = 0
    drawing: bool = False
    reason: EndReason | None = None

    def __post_init__(self) -> None:
        self.earlier_images = sum(image.draw for image in self.prompt.images)

    @property
    def role(self) -> Role | None:
        return "assistant" if self.prompt.is_conversation else None

    def noise(self) -> torch.Generator:
        """Return the generator of the next image's noise, a function of the seed and the image's number alone.

        The number counts the drawn images of the whole document, so that a continued document has the same images.
        """
        number = self.earlier_images + self.images
        return torch.Generator().manual_seed((self.seed + number * SEED_STEP) % 2**64)

    def take_scores(self, tokens: int | None = None) -> tuple[TokenScore, ...]:
        """Return the scores of the next tokens for an event; None: of all that are left."""
        taken = self.scores[:tokens]
        del self.scores[:tokens]
        return tuple(taken)

    def result(self) -> Document:
        return Document((*self.prompt.segments, *self.written), name=self.prompt.name)


class Generation:
    """The generation of a batch of documents. Iterate over `events()` to run it.

    Arguments are those of `DreamModel.generate`.

    Raises:
        DocumentError: a prompt, or the negative prompt, is longer than the model's length, or the number of seeds is
            wrong.
        DreamkitError: a setting is unknown or has a value that a recipe could not have; a seed is not an integer of 64
            bits without a sign; the decoder does not support the size, the scheduler or its number of steps. `events`
            raises it if logits, latents or pixels are not finite.
    """

    def __init__(
        self,
        model: DreamModel,
        prompts: Sequence[Document],
        *,
        seed: int | Sequence[int],
        settings: Mapping[str, Any],
    ) -> None:
        seeds = _seeds(seed, len(prompts))
        self.model = model
        self.options = options = generation_section(
            settings, None if model.recipe is None else model.recipe.generation
        )
        self.session = session = Session(model, len(prompts))
        self.lead = lead_byte(model.language_model)
        spec = model.language_model.spec
        self.ends = set() if options.ignore_eos else set(spec.eos_ids)
        self.max_length = spec.max_length
        sequencer = session.sequencer
        self.dream_start = sequencer.dream_start
        # An image takes two groups of tokens: dream queries and vision tokens, each group between two special tokens.
        self.image_length = sequencer.dream_queries + sequencer.vision_tokens + 4
        suppressed = {*model.token_ids.values(), *model.language_model.suppressed_ids}
        allowed = {self.dream_start} if options.max_images else set()
        # End tokens are never suppressed. With `ignore_eos` they stay in the ids, and `decode` leaves them out.
        self.suppressed = torch.tensor(
            sorted(suppressed - allowed - set(spec.eos_ids)), dtype=torch.long, device=session.device
        )
        self.writers = [
            _Writer(
                number,
                prompt,
                seeds[number],
                inputs,
                self._stream(sequencer.continued_texts(prompt)),
                self._chooser(prompt, seeds[number]),
            )
            for number, (prompt, inputs) in enumerate(
                zip(prompts, session.prompt_inputs(prompts), strict=True)
            )
        ]
        self.negative: Condition | None = None
        if options.max_images:
            check_size(model.image_decoder, options)
            check_schedule(model.image_decoder, options)
            if options.guidance != 1.0:
                negative = negative_document(options)
                check_room(sequencer, negative)
                self.negative = model.condition(model.dream_states(negative))

    def _stream(self, earlier: Sequence[Text] = ()) -> TextStream:
        return TextStream(self.model.language_model, self.lead, earlier, self.options.stop)

    def _chooser(self, prompt: Document, seed: int) -> TokenChooser:
        is_penalized = self.options.repetition_penalty != 1
        seen = set(self.session.sequencer.prompt(prompt).ids) if is_penalized else set()
        generator = torch.Generator().manual_seed(seed)
        return TokenChooser(self.options, generator, self.suppressed, self.dream_start, seen)

    def events(self) -> Iterator[Event]:
        """Generate all documents; yield each event when it happens."""
        unfinished = self.writers
        while unfinished:
            for writer in unfinished:
                writer.reason = writer.reason or self._limit(writer)
                if writer.reason is not None:
                    yield from self._flush(writer)
                    yield DocumentDone(writer.number, writer.result(), writer.reason, writer.take_scores())
            unfinished = [writer for writer in unfinished if writer.reason is None]
            if unfinished:
                yield from self._advance(unfinished)

    def _limit(self, writer: _Writer) -> EndReason | None:
        """Return the limit that ends a document now, or None."""
        if self._room(writer) < len(writer.inputs):
            return "length"
        return "tokens" if writer.tokens >= self.options.max_tokens and not writer.drawing else None

    def _room(self, writer: _Writer) -> int:
        """Return the number of positions left to a document within the model's length."""
        return self.max_length - self.session.positions[writer.number]

    def _advance(self, writers: list[_Writer]) -> Iterator[Event]:
        """Run each document's next inputs through the model, then write its next token or draw its image."""
        # hidden states (t, D) of each document, before the final norm
        hidden = self.session.feed({writer.number: writer.inputs for writer in writers})
        writing = [writer for writer in writers if not writer.drawing]
        drawing = [writer for writer in writers if writer.drawing]
        if writing:
            last = torch.stack([hidden[writer.number][-1] for writer in writing])
            logits = self.model.language_model.logits(self.model.language_model.final_norm(last)).float()
            for writer, row in zip(writing, logits, strict=True):
                yield from self._write(writer, row)
        if drawing:
            yield from self._draw(drawing, hidden)

    def _write(self, writer: _Writer, logits: Tensor) -> Iterator[Event]:
        """Write one token: text, the end, or the start of an image. `logits` is (vocabulary,)."""
        writer.tokens += 1
        score = writer.chooser.choose(logits)
        if score is None:
            raise logits_error(writer.prompt.name, writer.tokens)
        token = score.token
        if self.options.log_probs is not None or self.options.dream_probs:
            writer.scores.append(score)
        if token in self.ends:
            writer.reason = "end"
        elif token == self.dream_start and writer.images == self.options.max_images:
            # the model wants one more image than it may draw
            writer.reason = "images"
        elif token == self.dream_start and self._room(writer) < self.image_length:
            writer.reason = "length"
        elif token == self.dream_start:
            yield from self._flush(writer)
            yield ImageStarted(writer.number, writer.images, writer.take_scores())
            writer.drawing = True
            writer.inputs = self.session.dream_inputs()
        else:
            yield from self._yield_text(writer, token)
            writer.reason = "stop" if writer.text.is_stopped else None
            writer.inputs = self.session.embed([token])

    def _yield_text(self, writer: _Writer, token: int | None = None) -> Iterator[Event]:
        """Yield the text that `token` completes; without a token, the rest of the text since the last image."""
        if (new := writer.text.take(token)) is not None:
            yield TextPiece(writer.number, *new, writer.take_scores(len(new[1])))

    def _flush(self, writer: _Writer) -> Iterator[Event]:
        """Yield the rest of the text since the last image, and add it to the document."""
        yield from self._yield_text(writer)
        text = writer.text.segment(writer.role)
        if text is not None or writer.text.is_stopped:
            earlier = writer.text.earlier_texts()
            unchanged = writer.prompt.segments[: len(writer.prompt) - len(earlier)]
            writer.prompt = replace(writer.prompt, segments=(*unchanged, *earlier))
        if text is not None:
            writer.written.append(text)
        writer.text = self._stream()

    def _draw(self, writers: list[_Writer], hidden: dict[int, Tensor]) -> Iterator[Event]:
        """Draw one image for each writer. `<dream_end>` and the image are its next inputs."""
        queries = len(self.model.dream_queries)
        hidden_RD = torch.cat([hidden[writer.number][-queries:] for writer in writers])
        first_row_N = queries * torch.arange(len(writers), device=hidden_RD.device)
        decoder = self.model.image_decoder
        finite: list[Tensor] = []  # rows of the latents of each step
        for step, steps, latents in decoder.draw_steps(
            self.model.image_condition(hidden_RD, first_row_N),
            None if self.negative is None else self.negative[[0] * len(writers)],
            scheduler=self.options.scheduler,
            steps=self.options.steps,
            guidance=self.options.guidance,
            size=self.options.size,
            generators=[writer.noise() for writer in writers],
        ):
            finite.append(finite_rows(latents))
            for row, writer in enumerate(writers):

                def preview(latents_1CHW: Tensor = latents[row : row + 1]) -> Picture:
                    with torch.no_grad():  # the caller of the events may call it with gradients on
                        return to_picture(decoder.decode(latents_1CHW)[0])

                yield DenoisingStep(writer.number, writer.images, step, steps, preview)
        images = decoder.decode(latents)  # latents of the last step
        names = [f"{writer.prompt.name}: image {writer.images + 1}" for writer in writers]
        check_drawn(names, finite, finite_rows(images))
        pictures = [to_picture(image) for image in images]
        dream_end = self.session.embed([self.session.sequencer.dream_end])
        for writer, picture, inputs in zip(
            writers, pictures, self.session.read_inputs(pictures), strict=True
        ):
            yield ImageDone(writer.number, writer.images, picture)
            writer.written.append(Image(picture, draw=True, role=writer.role))
            writer.images += 1
            writer.drawing = False
            writer.inputs = torch.cat([dream_end, inputs])


def _seeds(seed: int | Sequence[int], prompts: int) -> list[int]:
    """Return a seed for each of `prompts` prompts.

    Raises:
        DocumentError: the number of seeds is wrong.
        DreamkitError: a seed is not an integer of 64 bits without a sign.
    """
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * prompts
    if len(seeds) != prompts:
        raise DocumentError(
            f"expected {count(prompts, 'seed')} for {count(prompts, 'prompt')}, got {len(seeds)}; pass one each, or one"
        )
    for each in seeds:
        if isinstance(each, bool) or not isinstance(each, Integral) or not 0 <= each <= MAX_SEED:
            raise DreamkitError(f"seed: expected an integer from 0 to {MAX_SEED}, got {describe_value(each)}")
    return [int(each) for each in seeds]
