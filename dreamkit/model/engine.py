"""One engine for many documents: they join and leave a running batch, each with its own settings and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from dreamkit.errors import DreamkitError, count
from dreamkit.model.document_seeds import checked_seed
from dreamkit.model.drawing import check_room, check_schedule, check_size, negative_document
from dreamkit.model.drawing_group import Drawing
from dreamkit.model.drawings_in_turn import DrawingsInTurn, Drawn
from dreamkit.model.evaluating import evaluating
from dreamkit.model.events import DocumentDone, DocumentFailed, Event
from dreamkit.model.input_maker import InputMaker
from dreamkit.model.lanes import Lanes
from dreamkit.model.offloading import is_offloaded
from dreamkit.model.prompts import Prompt, prompt_documents
from dreamkit.model.writer import Writer, WrittenLanguage
from dreamkit.parts.specs import Condition
from dreamkit.recipe.generation_section import GenerationSection

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel

PREFILL: Final = 512  # tokens
REMEMBERED: Final = 64  # settings and negative prompts


@dataclass
class Handle:
    """A document in an engine.

    Attributes:
        number: its number, which its events have as `document`.
        last: the last event of the document, once it happened.
        is_cancelled: flag: `cancel` was called.
    """

    number: int
    last: DocumentDone | DocumentFailed | None = None
    is_cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """End the document in the next step, with the reason "cancelled"."""
        self.is_cancelled = True


class Engine:
    """Documents that are written at the same time. Each one is the same whoever shares the batch.

    A step writes a token of each document, or reads the next tokens of its prompt or image, and runs one denoising step
    of some images. The model stays unchanged while documents are written.

    Args:
        model: the model that writes.
        budget_tokens: most positions of the documents that are written at the same time; None: no limit. Others wait,
            in the order of `submit`. A document counts with all positions that its settings allow.
        budget_bytes: most bytes of their KV cache, counted in the same way.
        prefill_tokens: most tokens of prompts and images that a step reads, so that long ones do not stop others.

    Raises:
        DreamkitError: `budget_bytes` is given, and the language model does not tell the size of its cache.
    """

    def __init__(
        self,
        model: DreamModel,
        *,
        budget_tokens: int | None = None,
        budget_bytes: int | None = None,
        prefill_tokens: int = PREFILL,
    ) -> None:
        self.model = model
        self.budget_tokens, self.budget_bytes = budget_tokens, budget_bytes
        self._maker = InputMaker(model)
        self._language = WrittenLanguage(model, self._maker.sequencer)
        self._lanes = Lanes(model, prefill_tokens)
        self._drawings = DrawingsInTurn(model.image_decoder)
        self._is_offloaded = is_offloaded(model.image_decoder)
        self._handles: dict[int, Handle] = {}  # of unfinished documents
        self._waiting: dict[int, Writer] = {}
        self._writers: dict[int, Writer] = {}  # of documents in the batch
        self._submitted = 0
        self._slot_bytes: float | None = None  # of the KV cache of one position
        self._check_settings = lru_cache(REMEMBERED)(self._checked_settings)
        self._negative_of = lru_cache(REMEMBERED)(self._negative_condition)
        if budget_bytes is not None and not self._lanes.tells_bytes:
            raise DreamkitError(
                "budget_bytes: the language model does not tell the size of its KV cache (cache_bytes); pass "
                "budget_tokens in its place"
            )

    @property
    def is_idle(self) -> bool:
        """True if no document is unfinished."""
        return not self._handles

    def submit(self, document: Prompt, settings: GenerationSection | None = None, seed: int = 0) -> Handle:
        """Add a prompt to continue. Its events come from `step`.

        Args:
            document: a document, or a text.
            settings: None: those of the model's recipe, or the defaults.
            seed: from 0 to 2**64 - 1; a number alone decides the noise of images and sampled tokens.

        Raises:
            DocumentError: the prompt, or the negative prompt, is longer than the model's length.
            DreamkitError: the decoder does not support the size, the scheduler or its number of steps; the document
                may exceed the budget alone; the seed is out of its range.
        """
        (prompt,) = prompt_documents(document)
        recipe = self.model.recipe
        options = settings or (GenerationSection() if recipe is None else recipe.generation)
        writer = Writer(self._submitted, prompt, options, checked_seed(seed), self._language)
        with torch.no_grad(), self._evaluating():
            self._check_settings(options)
        if self.budget_tokens is not None and writer.most_positions > self.budget_tokens:
            raise self._too_large(writer)
        self._submitted += 1
        self._waiting[writer.number] = writer
        self._handles[writer.number] = handle = Handle(writer.number)
        return handle

    def step(self) -> list[Event]:
        """Run one step, and return its events; none without unfinished documents."""
        with torch.no_grad(), self._evaluating():
            events = [*self._turn()]
        for event in events:
            if isinstance(event, DocumentDone | DocumentFailed):
                self._handles.pop(event.document).last = event
        return events

    def drain(self) -> Iterator[Event]:
        """Run steps until no document is unfinished; yield their events."""
        while not self.is_idle:
            yield from self.step()

    def _turn(self) -> Iterator[Event]:
        yield from self._end_documents()
        yield from self._admit()
        # offloaded parts would change places on the device in each step, so text waits for images
        is_text = self._drawings.is_idle or not self._is_offloaded
        hidden = self._lanes.advance(self._writers) if is_text else {}
        self._measure()
        fed = [self._writers[number] for number in hidden]
        writing, drawing = ([writer for writer in fed if writer.drawing is flag] for flag in (False, True))
        if writing:
            yield from self._write(writing, torch.stack([hidden[writer.number][-1] for writer in writing]))
        self._begin_drawings(drawing, hidden)
        steps, drawn = self._drawings.turn()
        yield from steps
        yield from self._read_back(drawn)

    def _end_documents(self) -> Iterator[Event]:
        """End documents that are cancelled, or have a reason to end."""
        ended = set()
        for number, handle in self._handles.items():
            writer = self._writers.get(number) or self._waiting[number]
            reason = "cancelled" if handle.is_cancelled else writer.reason or writer.limit
            if reason is not None:
                yield from writer.end(reason)
                ended.add(number)
        self._remove(ended)

    def _remove(self, numbers: set[int]) -> None:
        if numbers:
            self._lanes.drop(numbers)
            self._drawings.drop(numbers)
            for number in numbers:
                self._writers.pop(number, None)
                self._waiting.pop(number, None)

    def _fail(self, writer: Writer, error: Exception) -> DocumentFailed:
        self._remove({writer.number})
        return DocumentFailed(writer.number, writer.result(), error)

    def _admit(self) -> Iterator[Event]:
        """Let waiting documents join, in their order, as long as the budget allows."""
        admitted: list[Writer] = []
        for writer in [*self._waiting.values()]:
            if self._fits([*self._writers.values(), *admitted, writer]):
                admitted.append(writer)
            elif self._writers or admitted:
                break
            else:  # its bytes are known only now
                yield self._fail(writer, self._too_large(writer))
        for writer, inputs in zip(
            admitted, self._maker.prompt_inputs([writer.prompt for writer in admitted]), strict=True
        ):
            writer.inputs = inputs
            self._lanes.add(writer.number)
            self._writers[writer.number] = self._waiting.pop(writer.number)

    def _fits(self, writers: Sequence[Writer]) -> bool:
        """Return True if documents may be written at the same time."""
        positions = [writer.most_positions for writer in writers]
        if self.budget_tokens is not None and sum(positions) > self.budget_tokens:
            return False
        if self.budget_bytes is None:
            return True
        if self._slot_bytes is None:
            return len(writers) == 1
        # rows that are joined are as long as the longest
        return len(writers) * max(positions) * self._slot_bytes <= self.budget_bytes

    def _measure(self) -> None:
        """Measure the bytes of a position, while one document is alone."""
        if self.budget_bytes is not None and len(self._writers) == 1:
            (writer,) = self._writers.values()
            self._slot_bytes = (self._lanes.cache_bytes() or 0) / writer.position

    def _too_large(self, writer: Writer) -> DreamkitError:
        positions = count(f"{writer.most_positions:,}", "position")
        if self.budget_tokens is not None and writer.most_positions > self.budget_tokens:
            budget = f"at most {self.budget_tokens:,} (budget_tokens)"
        else:
            budget = f"a KV cache of at most {count(f'{self.budget_bytes:,}', 'byte')} (budget_bytes)"
        return DreamkitError(
            f"{writer.prompt.name}: expected {budget}, got a document of up to {positions}; shorten the prompt, lower "
            "max_tokens or max_images, or raise the budget"
        )

    def _write(self, writers: Sequence[Writer], hidden_ND: Tensor) -> Iterator[Event]:
        """Write a token of each document, from its last hidden state before the final norm."""
        language_model = self.model.language_model
        logits_NV = language_model.logits(language_model.final_norm(hidden_ND)).float()
        failed = []
        for writer, logits_V in zip(writers, logits_NV, strict=True):
            try:
                yield from writer.write(logits_V)
            except DreamkitError as error:
                failed.append(writer)
                yield self._fail(writer, error)
        writers = [writer for writer in writers if writer not in failed]
        texts = [writer for writer in writers if writer.reason is None and not writer.drawing]
        if texts:
            embeds_ND = self._maker.embed([writer.token for writer in texts])
            for writer, embeds_1D in zip(texts, embeds_ND.split(1), strict=True):
                writer.inputs = embeds_1D
        for writer in writers:
            if writer.drawing:
                writer.inputs = self._maker.dream_inputs()

    def _begin_drawings(self, writers: Sequence[Writer], hidden: Mapping[int, Tensor]) -> None:
        """Add drawings whose dream states are computed, from the hidden states (Q, D) of each."""
        if not writers:
            return
        hidden_RD = torch.cat([hidden[writer.number] for writer in writers])
        first_row_N = len(self.model.dream_queries) * torch.arange(len(writers), device=hidden_RD.device)
        condition = self.model.image_condition(hidden_RD, first_row_N)
        self._drawings.add(
            Drawing(writer, condition[[row]], self._negative(writer.options))
            for row, writer in enumerate(writers)
        )

    def _read_back(self, drawn: Sequence[Drawn]) -> Iterator[Event]:
        """Add drawn images to their documents, which go on after them; end those whose drawing failed."""
        for writer, error in drawn:
            if isinstance(error, Exception):
                yield self._fail(writer, error)
        images = [(writer, picture) for writer, picture in drawn if not isinstance(picture, Exception)]
        read = self._maker.read_inputs([picture for _, picture in images])
        for (writer, picture), inputs in zip(images, read, strict=True):
            yield writer.add_image(picture)
            writer.inputs = torch.cat([self._maker.embed([self._maker.sequencer.dream_end]), inputs])

    def _checked_settings(self, options: GenerationSection) -> None:
        """Raise the errors of the image size and the schedule before anything is written."""
        if options.max_images:
            check_size(self.model.image_decoder, options)
            check_schedule(self.model.image_decoder, options)
            self._negative(options)

    def _negative(self, options: GenerationSection) -> Condition | None:
        """Return the condition (of one image) from which guidance leads away; None without guidance."""
        return None if options.guidance == 1.0 else self._negative_of(options.negative_prompt)

    def _negative_condition(self, text: str) -> Condition:
        negative = negative_document(text)
        check_room(self._maker.sequencer, negative)
        return self.model.condition(self.model.dream_states(negative))

    def _evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model) if self.model.training else nullcontext()
