"""The interleaved loop: decode text, draw at the dream token, read the picture back, decode on.

Every position of a document passes through the language model once: prompt, words, dream queries and the picture read
back all go through one cache. Documents of a batch advance together, each at its own position; the slots where one of
them has nothing to say are padding that nobody sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

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
from dreamkit.parts.specs import Condition
from dreamkit.recipe.sections import GenerationSection

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.data.sequence import Sequencer
    from dreamkit.model.model import DreamModel

Prompt = Document | str


class InterleavedGeneration:
    """What lets a `DreamModel` write documents."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        seed: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        ignore_eos: bool = False,
        **settings: Any,
    ) -> Iterator[Event]:
        """Goes on from each prompt, and yields what happens as it happens; `collect` gathers the documents.

        `seed` is one for every document, or one each: a document depends on its own prompt and seed alone, not on the
        batch it is in. `size` is (height, width) in pixels. `ignore_eos` writes up to the limits. `settings` are the
        fields of a recipe's `generation` section, and take the place of the model's own: `max_tokens`, `max_images`,
        `temperature` (0 is greedy), `top_p`, `scheduler`, `steps`, `guidance`.

        Raises:
            DocumentError: a prompt that does not fit into the model's length, or a number of seeds that is not theirs.
        DreamkitError: an unknown setting, a scheduler that the decoder does not have, or more steps than it takes.
        """
        model = cast("DreamModel", self)
        known = [setting.name for setting in fields(GenerationSection)]
        for name in settings:
            if name not in known:
                raise DreamkitError(f"there is no setting '{name}'; {did_you_mean(name, known)}")
        options = replace(model.recipe.generation if model.recipe else GenerationSection(), **settings)
        was_training = model.training
        model.eval()
        try:
            yield from _Generation(model, _documents(prompts), seed, size, ignore_eos, options).events()
        finally:
            model.train(was_training)

    @torch.no_grad()
    def dream_states(self, prompts: Prompt | Sequence[Prompt]) -> Tensor:
        """What the dream queries become after each prompt: (N, Q, D), after the final norm."""
        documents = _documents(prompts)
        session = _Session(cast("DreamModel", self), len(documents))
        embeds = [torch.cat([prompt, session.dream_inputs()]) for prompt in session.prompt_inputs(documents)]
        hidden = session.feed(dict(enumerate(embeds)))
        return torch.stack([session.dream_states(hidden[number]) for number in range(len(documents))])


def _documents(prompts: Prompt | Sequence[Prompt]) -> list[Document]:
    several = [prompts] if isinstance(prompts, (Document, str)) else list(prompts)
    return [
        Document((Text(p),) if p else (), name=f"prompt {n}") if isinstance(p, str) else p
        for n, p in enumerate(several)
    ]


class _Session:
    """One pass of a batch of documents through the language model, in pieces of any length.

    A model that cannot go on from a cache is given all of a document again with each piece.
    """

    def __init__(self, model: DreamModel, documents: int) -> None:
        self.model = model
        self.sequencer: Sequencer = model.sequencer()
        self.cache = model.language_model.new_cache() if model.language_model.spec.cache else None
        self.past: list[Tensor | None] = [None] * documents  # what was fed, where there is no cache
        self.positions = [0] * documents
        self.device = model.dream_queries.device

    def embed(self, ids: list[int]) -> Tensor:
        return self.model.language_model.embed(torch.tensor(ids, dtype=torch.long, device=self.device))

    def dream_inputs(self) -> Tensor:
        """The dream token and the queries: (1 + Q, D)."""
        return torch.cat([self.embed([self.sequencer.dream_start]), self.model.dream_queries])

    def read_inputs(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Each picture between its tokens: (V + 2, D)."""
        if not pictures:
            return []
        pixels = self.model.vision_encoder.preprocess(pictures).to(self.device)
        vision_NVD = self.model.visual_projector(self.model.vision_encoder(pixels))
        start, end = self.embed([self.sequencer.image_start]), self.embed([self.sequencer.image_end])
        return [torch.cat([start, vision_VD, end]) for vision_VD in vision_NVD]

    def prompt_inputs(self, documents: Sequence[Document]) -> list[Tensor]:
        """The embeddings (T, D) of each prompt."""
        sequences = [self.sequencer.prompt(document) for document in documents]
        read = iter(self.read_inputs([picture for sequence in sequences for _, picture in sequence.reads]))
        prompts = []
        for sequence in sequences:
            embeds = self.embed(sequence.ids)
            for at, _ in sequence.reads:
                picture = next(read)
                embeds[at - 1 : at - 1 + len(picture)] = picture
            prompts.append(embeds)
        return prompts

    def feed(self, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
        """Runs each document's next embeddings (t, D) through the language model -> hidden states (t, D)."""
        given = inputs if self.cache is not None else self._with_past(inputs)
        width = max(len(embeds) for embeds in given.values())
        dim = self.model.language_model.spec.dim
        embeds_BTD = self.model.dream_queries.new_zeros(len(self.positions), width, dim)
        position_ids = torch.zeros(len(self.positions), width, dtype=torch.long)
        segment_ids = torch.full_like(position_ids, -1)
        for number, embeds in given.items():
            start, length = 0 if self.cache is None else self.positions[number], len(embeds)
            embeds_BTD[number, :length] = embeds
            position_ids[number, :length] = torch.arange(start, start + length)
            segment_ids[number, :length] = 0
            self.positions[number] = start + length
        hidden = self.model.language_model(
            embeds_BTD, position_ids.to(self.device), segment_ids.to(self.device), cache=self.cache
        )
        return {
            number: hidden[number, : len(embeds)][-len(inputs[number]) :] for number, embeds in given.items()
        }

    def _with_past(self, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
        for number, embeds in inputs.items():
            past = self.past[number]
            self.past[number] = embeds if past is None else torch.cat([past, embeds])
        return {number: past for number in inputs if (past := self.past[number]) is not None}

    def dream_states(self, hidden_TD: Tensor) -> Tensor:
        """The dream states (Q, D) at the end of hidden states that end with the queries."""
        return self.model.language_model.final_norm(hidden_TD[-len(self.model.dream_queries) :])


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


class _Generation:
    """The loop over a batch of writers."""

    def __init__(
        self,
        model: DreamModel,
        prompts: list[Document],
        seed: int | Sequence[int],
        size: tuple[int, int] | None,
        ignore_eos: bool,
        options: GenerationSection,
    ) -> None:
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise DocumentError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one, or one each")
        self.model = model
        self.options = options
        self.size = size
        self.session = session = _Session(model, len(prompts))
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
        unwritten = {*model.token_ids.values(), *model.language_model.unwritten_ids}
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
        token = self._choose(logits_V, writer.generator)
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

    def _choose(self, logits_V: Tensor, generator: torch.Generator) -> int:
        if self.options.temperature == 0:
            return int(logits_V.argmax())
        # The greatest logit becomes 0, so that division by a tiny temperature leaves no two infinite ones.
        logits_V = logits_V.cpu().double()
        scaled_V = (logits_V - logits_V.max()) / self.options.temperature
        probabilities, order = scaled_V.softmax(-1).sort(descending=True)
        # The smallest set of tokens that holds top_p of the probability; the first one is always in it.
        outside = probabilities.cumsum(-1) - probabilities >= self.options.top_p
        outside[0] = False
        probabilities[outside] = 0
        return int(order[torch.multinomial(probabilities, 1, generator=generator)])

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
        for done in decoder.denoising(
            self.model.drawn_from(hidden_RD, base_N),
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


def _picture(image_CHW: Tensor) -> Picture:
    """An image (3, H, W) in [0, 1] as a picture of 8 bits a channel."""
    return PIL.fromarray((image_CHW * 255).round().byte().permute(1, 2, 0).cpu().numpy())
