"""The interleaved loop: decode text, draw at the dream token, read the picture back, decode on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as PIL
from torch import Tensor

from dreamkit.document import Document, Image, Role, Segment, Text
from dreamkit.errors import DocumentError, DreamkitError, did_you_mean
from dreamkit.model.events import (
    DenoisingStep,
    DocumentDone,
    EndReason,
    Event,
    ImageDone,
    ImageStarted,
    TextPiece,
)
from dreamkit.model.session import Session
from dreamkit.parts.specs import Condition
from dreamkit.recipe.sections import GenerationSection

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel


@dataclass
class _Writer:
    """One document on its way."""

    number: int
    prompt: Document
    generator: torch.Generator
    inputs: Tensor  # (t, D), to be fed next
    written: list[Segment] = field(default_factory=list)
    run: list[int] = field(default_factory=list)  # ids of the text since the last picture
    shown: int = 0  # characters of that text already yielded
    shown_ids: int = 0
    tokens: int = 0
    images: int = 0
    drawing: bool = False
    reason: EndReason | None = None

    @property
    def role(self) -> Role | None:
        return "assistant" if self.prompt.is_conversation else None

    def result(self) -> Document:
        return Document((*self.prompt.segments, *self.written), name=self.prompt.name)


class Generation:
    """A batch of documents that one model writes. `events` yields what happens as it happens.

    Raises:
        DocumentError: a prompt that does not fit into the model's length, or a number of seeds that is not theirs.
        DreamkitError: an unknown setting, a scheduler that the decoder does not have, or more steps than it takes.
    """

    def __init__(
        self,
        model: DreamModel,
        prompts: Sequence[Document],
        *,
        seed: int | Sequence[int],
        size: tuple[int, int] | None,
        ignore_eos: bool,
        settings: Mapping[str, Any],
    ) -> None:
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise DocumentError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one, or one each")
        self.model = model
        self.options = options = _options(model, settings)
        self.size = size
        self.session = session = Session(model, len(prompts))
        self.writers = [
            _Writer(number, prompt, torch.Generator().manual_seed(seeds[number]), inputs)
            for number, (prompt, inputs) in enumerate(
                zip(prompts, session.prompt_inputs(prompts), strict=True)
            )
        ]
        spec = model.language_model.spec
        self.ends = set() if ignore_eos else set(spec.eos_ids)
        self.max_length = spec.max_length
        sequencer = session.sequencer
        self.dream_start = sequencer.dream_start
        # A picture takes its queries and its vision tokens, each between two special tokens.
        self.picture_length = sequencer.dream_queries + sequencer.vision_tokens + 4
        unwritten = {*model.token_ids.values(), *model.language_model.suppressed_ids}
        drawing = {self.dream_start} if options.max_images else set()
        self.never = sorted(unwritten - drawing - set(spec.eos_ids))
        self.negative: Condition | None = None
        if options.max_images:
            self._try_schedule()
            if options.guidance != 1.0:
                self.negative = model.condition(model.dream_states(""))

    def _try_schedule(self) -> None:
        """Finds out that nothing could be drawn before anything is written."""
        name, steps = self.options.scheduler, self.options.steps
        try:
            self.model.image_decoder.scheduler(name).set_timesteps(steps)
        except ValueError as error:
            named = "the decoder's own scheduler" if name is None else f"the scheduler '{name}'"
            raise DreamkitError(f"cannot draw in {steps} steps of {named}: {error}") from error

    def events(self) -> Iterator[Event]:
        waiting = self.writers
        while waiting:
            for writer in waiting:
                writer.reason = writer.reason or self._limit(writer)
                if writer.reason is not None:
                    yield from self._flush(writer)
                    yield DocumentDone(writer.number, writer.result(), writer.reason)
            waiting = [writer for writer in waiting if writer.reason is None]
            if waiting:
                yield from self._advance(waiting)

    def _limit(self, writer: _Writer) -> EndReason | None:
        """The limit that keeps a document from going on."""
        if self._room(writer) < len(writer.inputs):
            return "length"
        return "tokens" if writer.tokens >= self.options.max_tokens and not writer.drawing else None

    def _room(self, writer: _Writer) -> int:
        """The positions that the model's length leaves a document."""
        return self.max_length - self.session.positions[writer.number]

    def _advance(self, writers: list[_Writer]) -> Iterator[Event]:
        """Feeds each document what it wrote last, then lets it write a token or draw its picture."""
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

    def _write(self, writer: _Writer, logits_V: Tensor) -> Iterator[Event]:
        """One token: a word, the end, or the decision to draw."""
        logits_V[self.never] = -torch.inf
        token = _sampled(logits_V, self.options, writer.generator)
        writer.tokens += 1
        if token in self.ends:
            writer.reason = "end"
        elif token == self.dream_start and writer.images == self.options.max_images:
            writer.reason = "images"
        elif token == self.dream_start and self._room(writer) < self.picture_length:
            writer.reason = "length"
        elif token == self.dream_start:
            yield from self._flush(writer)
            yield ImageStarted(writer.number, writer.images)
            writer.drawing = True
            writer.inputs = self.session.dream_inputs()
        else:
            writer.run.append(token)
            yield from self._show(writer, finished=False)
            writer.inputs = self.session.embed([token])

    def _show(self, writer: _Writer, finished: bool) -> Iterator[Event]:
        """What of the current run of text is new; an unfinished character waits for its last byte."""
        text = self.model.language_model.decode(writer.run)
        is_new = len(text) > writer.shown and not text.endswith("\ufffd")
        if is_new or (finished and len(writer.run) > writer.shown_ids):
            yield TextPiece(writer.number, text[writer.shown :], tuple(writer.run[writer.shown_ids :]))
            writer.shown, writer.shown_ids = len(text), len(writer.run)

    def _flush(self, writer: _Writer) -> Iterator[Event]:
        """Ends the current run of text."""
        yield from self._show(writer, finished=True)
        if text := self.model.language_model.decode(writer.run):
            writer.written.append(Text(text, role=writer.role))
        writer.run, writer.shown, writer.shown_ids = [], 0, 0

    def _draw(self, writers: list[_Writer], hidden: dict[int, Tensor]) -> Iterator[Event]:
        """Draws one picture for each of the writers, and has each read its own."""
        queries = len(self.model.dream_queries)
        hidden_RD = torch.cat([hidden[writer.number][-queries:] for writer in writers])
        base_N = queries * torch.arange(len(writers), device=hidden_RD.device)
        decoder = self.model.image_decoder
        for done in decoder.draw_steps(
            self.model.image_condition(hidden_RD, base_N),
            None if self.negative is None else self.negative[[0] * len(writers)],
            scheduler=self.options.scheduler,
            steps=self.options.steps,
            guidance=self.options.guidance,
            size=self.size,
            generators=[writer.generator for writer in writers],
        ):
            latents = done.latents
            for row, writer in enumerate(writers):

                def preview(latents_1CHW: Tensor = latents[row : row + 1]) -> Picture:
                    with torch.no_grad():
                        return _picture(decoder.decode(latents_1CHW)[0])

                yield DenoisingStep(writer.number, writer.images, done.step, done.steps, preview)
        pictures = [_picture(image) for image in decoder.decode(latents)]
        dream_end = self.session.embed([self.session.sequencer.dream_end])
        for writer, picture, inputs in zip(
            writers, pictures, self.session.read_inputs(pictures), strict=True
        ):
            yield ImageDone(writer.number, writer.images, picture)
            writer.written.append(Image(picture, draw=True, role=writer.role))
            writer.images += 1
            writer.drawing = False
            writer.inputs = torch.cat([dream_end, inputs])


def _options(model: DreamModel, settings: Mapping[str, Any]) -> GenerationSection:
    """The generation settings of the model's recipe, those of `settings` in their place."""
    known = [setting.name for setting in fields(GenerationSection)]
    for name in settings:
        if name not in known:
            raise DreamkitError(f"there is no setting '{name}'; {did_you_mean(name, known)}")
    return replace(model.recipe.generation if model.recipe else GenerationSection(), **settings)


def _sampled(logits_V: Tensor, options: GenerationSection, generator: torch.Generator) -> int:
    """The id of the next token, greedy at temperature 0."""
    if options.temperature == 0:
        return int(logits_V.argmax())
    # The greatest logit becomes 0, so that division by a tiny temperature leaves no two infinite ones.
    logits_V = logits_V.cpu().double()
    scaled_V = (logits_V - logits_V.max()) / options.temperature
    probabilities, order = scaled_V.softmax(-1).sort(descending=True)
    # The smallest set of tokens that holds top_p of the probability; the first one is always in it.
    outside = probabilities.cumsum(-1) - probabilities >= options.top_p
    outside[0] = False
    probabilities[outside] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _picture(image_CHW: Tensor) -> Picture:
    """An image (3, H, W) in [0, 1] as a picture of 8 bits a channel."""
    return PIL.fromarray((image_CHW * 255).round().byte().permute(1, 2, 0).cpu().numpy())
