"""One engine for many documents: they join and leave a running batch, each with its own settings and seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from dreamkit.document import Document
from dreamkit.errors import DreamkitError, count, describe_value
from dreamkit.model.beam_writer import BeamWriter
from dreamkit.model.document_seeds import checked_seed
from dreamkit.model.drawing import check_room, check_schedule, check_size, negative_document
from dreamkit.model.drawing_group import Drawing
from dreamkit.model.drawings_in_turn import DrawingsInTurn, Drawn
from dreamkit.model.evaluating import evaluating
from dreamkit.model.events import DocumentDone, DocumentFailed, Event
from dreamkit.model.input_maker import InputMaker
from dreamkit.model.lanes import Lanes
from dreamkit.model.offloading import is_offloaded
from dreamkit.model.prefixes import Prefixes
from dreamkit.model.prompts import Prompt, prompt_documents
from dreamkit.model.writer import Writer, WrittenLanguage
from dreamkit.parts.specs import Condition
from dreamkit.recipe.generation_section import GenerationSection
from dreamkit.recipe.settings import generation_section

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel

PREFILL: Final = 512  # tokens
PREFIXES: Final = 10**9  # bytes
REMEMBERED: Final = 64  # negative prompts


@dataclass(eq=False)
class Handle:
    """A document in an engine.

    Attributes:
        number: its number, which its events have as `document`.
        last: the last event of the document, once it happened.
        is_cancelled: flag: `cancel` was called.
        reused: number of first positions that were taken from the KV cache of another document.
    """

    number: int
    last: DocumentDone | DocumentFailed | None = None
    is_cancelled: bool = field(default=False, init=False)
    reused: int = field(default=0, init=False)

    def cancel(self) -> None:
        """End the document in the next step, with the reason "cancelled"."""
        self.is_cancelled = True


class Engine:
    """Documents that are written at the same time. Each one is the same whoever shares the batch.

    A step writes a token of each document, or reads the next tokens of its prompt or image, and runs one denoising step
    of some images. After a change of the model, its device or its weights, make a new engine.
    Call `model.eval()` before: a model in training mode is put into evaluation mode, and back, in each step.

    Args:
        model: the model that writes.
        budget_tokens: most positions of the documents that are written at the same time; None: no limit. Others wait,
            in the order of `submit`. A document counts with all positions that its settings allow, once for each beam.
        budget_bytes: most bytes of their KV cache, counted in the same way.
        prefill_tokens: most tokens of prompts and images that a step reads, so that long ones do not stop others.
        prefix_bytes: most bytes of KV caches of ended documents, which are kept in addition. A document that begins
            like one of them, or like one in the batch, starts from its cache. At most 256 are kept.

    Raises:
        DreamkitError: a number is not an integer, or too small; `budget_bytes` is given, and the size of the language
            model's cache is unknown.
    """

    def __init__(
        self,
        model: DreamModel,
        *,
        budget_tokens: int | None = None,
        budget_bytes: int | None = None,
        prefill_tokens: int = PREFILL,
        prefix_bytes: int = PREFIXES,
    ) -> None:
        bounds = {"budget_tokens": budget_tokens, "budget_bytes": budget_bytes}
        for name, value in {**bounds, "prefill_tokens": prefill_tokens, "prefix_bytes": prefix_bytes}.items():
            _check_number(name, value, least=0 if name == "prefix_bytes" else 1, or_none=name in bounds)
        self.model = model
        self.budget_tokens, self.budget_bytes = budget_tokens, budget_bytes
        self._maker = InputMaker(model)
        self._language = WrittenLanguage(model, self._maker.sequencer)
        self._writers: dict[int, Writer] = {}  # of documents in the batch
        self._lanes = Lanes(model, prefill_tokens)
        self._drawings = DrawingsInTurn(model.image_decoder)
        self._is_offloaded = is_offloaded(model.image_decoder)
        self._prefixes = Prefixes(model.language_model, self._lanes, self._writers, prefix_bytes)
        self._events: deque[Event] = deque()  # that happened and are not returned yet
        self._handles: dict[int, Handle] = {}  # of unfinished documents
        self._waiting: dict[int, Writer] = {}
        self._submitted = 0
        self._slot_bytes: float | None = None  # of the KV cache of one position
        self._negatives: dict[str, Condition] = {}
        if budget_bytes is not None and not self._lanes.has_known_bytes:
            raise DreamkitError(
                "budget_bytes: the size of this language model's KV cache is unknown (`cache_bytes`); pass "
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
            seed: from 0 to 2**64 - 1; it alone decides the noise of images and sampled tokens.

        Raises:
            DocumentError: the prompt, or the negative prompt, is longer than the model's length.
            DreamkitError: the decoder does not support the size, the scheduler or its number of steps; the document
                may exceed the budget alone; the seed is out of its range.
        """
        (prompt,) = prompt_documents(document)
        number, recipe = self._submitted, self.model.recipe
        if isinstance(document, str):
            prompt = Document(prompt.segments, name=f"prompt {number}")
        options = generation_section({}, settings or (None if recipe is None else recipe.generation))
        kind = Writer if options.beams == 1 else BeamWriter
        writer = kind(number, prompt, options, checked_seed(seed), self._language)
        with torch.no_grad(), self._evaluating():
            self._check_settings(options)
        if not self._fits(writer, ()):
            raise self._too_large(writer)
        self._submitted += 1
        self._waiting[number] = writer
        self._handles[number] = handle = Handle(number)
        return handle

    def step(self) -> list[Event]:
        """Run one step, and return its events; none without unfinished documents.

        An error in a call that documents share, such as one of the language model, ends all that are in the batch.
        """
        self._run()
        events = [*self._events]
        self._events.clear()
        return events

    def drain(self) -> Iterator[Event]:
        """Run steps until no document is unfinished; yield their events."""
        while self._events or not self.is_idle:
            if not self._events:
                self._run()
                continue
            yield self._events.popleft()

    def _run(self) -> None:
        """Run one step, and add its events to those that happened."""
        with torch.no_grad(), self._evaluating():
            try:
                for event in self._turn():
                    self._add(event)
            except Exception as error:  # the code of a plug-in may fail in any way
                for writer in [*self._writers.values()]:
                    done = None if writer.reason is None else writer.end(writer.reason)
                    for event in done or writer.fail(error):
                        self._add(event)

    def _add(self, event: Event) -> None:
        if isinstance(event, DocumentDone | DocumentFailed):
            self._handles.pop(event.document).last = event
        self._events.append(event)
        if isinstance(event, DocumentDone | DocumentFailed):
            self._remove(event.document, keep=isinstance(event, DocumentDone))

    def _turn(self) -> Iterator[Event]:
        yield from self._end_documents()
        yield from self._admit()
        # offloaded parts would change places on the device in each step, so text waits for images
        is_text = self._drawings.is_idle or not self._is_offloaded
        hidden = self._lanes.advance(self._writers) if is_text else {}
        yield from self._measure()
        fed = [self._writers[number] for number in hidden if number in self._writers]
        writing, drawing = ([writer for writer in fed if writer.drawing is flag] for flag in (False, True))
        if writing:
            yield from self._write(writing, [hidden[writer.number].select(-2, -1) for writer in writing])
        self._begin_drawings(drawing, hidden)
        steps, drawn = self._drawings.turn()
        yield from steps
        yield from self._read_back(drawn)

    def _end_documents(self) -> Iterator[Event]:
        """End documents that are cancelled, or have a reason to end."""
        for number, handle in [*self._handles.items()]:
            writer = self._writers.get(number)
            if writer is None and not handle.is_cancelled:
                continue
            writer = writer or self._waiting[number]
            reason = writer.reason or ("cancelled" if handle.is_cancelled else writer.limit)
            if reason is not None:
                yield from writer.end(reason)

    def _remove(self, number: int, *, keep: bool) -> None:
        self._drawings.drop(number)
        self._waiting.pop(number, None)
        writer = self._writers.pop(number, None)
        if keep and writer is not None:
            self._prefixes.keep(writer)
        self._lanes.drop(number)

    def _admit(self) -> Iterator[Event]:
        """Let waiting documents join, in their order, as long as the budget allows."""
        awaiting: list[Writer] = []  # they keep their place
        for writer in [*self._waiting.values()]:
            if not self._fits(writer, ()):  # its bytes are known only now
                yield from writer.fail(self._too_large(writer))
            elif not self._fits(writer, [*self._writers.values(), *awaiting]):
                return
            elif writer.limit is not None:
                yield from writer.end(writer.limit)
            else:
                try:
                    awaiting += [] if self._begin(writer) else [writer]
                except Exception as error:  # of an image's file, or of a part
                    yield from writer.fail(error)

    def _begin(self, writer: Writer) -> bool:
        """Let a document join; return False if another one is just reading the same beginning, so that it waits."""
        writer.names = writer.names or self._maker.names(writer.sequence)
        if self._prefixes.awaits(writer):
            return False
        writer.position, cache = self._prefixes.begin(writer)
        (writer.inputs,) = self._maker.prompt_inputs([writer.sequence], writer.position)
        self._lanes.add(writer.number, writer.position, cache)
        self._handles[writer.number].reused = writer.position
        self._writers[writer.number] = self._waiting.pop(writer.number)
        return True

    def _fits(self, writer: Writer, others: Sequence[Writer]) -> bool:
        """Return True if a document may be written beside others."""
        positions = [each.most_positions for each in (*others, writer) for _ in range(each.options.beams)]
        if self.budget_tokens is not None and sum(positions) > self.budget_tokens:
            return False
        if self.budget_bytes is None:
            return True
        if self._slot_bytes is None:
            return not others
        # rows that are joined are as long as the longest
        return len(positions) * max(positions) * self._slot_bytes <= self.budget_bytes

    def _measure(self) -> Iterator[Event]:
        """Measure the bytes of a position when the first document is alone; end it if it may exceed the budget."""
        if self.budget_bytes is not None and self._slot_bytes is None and self._writers:
            (writer,) = self._writers.values()
            self._slot_bytes = (self._lanes.cache_bytes() or 0) / writer.position
            if not self._fits(writer, ()):
                yield from writer.fail(self._too_large(writer))

    def _too_large(self, writer: Writer) -> DreamkitError:
        most = writer.most_positions * writer.options.beams
        if self.budget_tokens is not None and most > self.budget_tokens:
            budget = f"at most {self.budget_tokens:,} (budget_tokens)"
        else:
            budget = f"a KV cache of at most {count(f'{self.budget_bytes:,}', 'byte')} (budget_bytes)"
        return DreamkitError(
            f"{writer.prompt.name}: expected {budget}, got a document of up to {count(f'{most:,}', 'position')}; "
            "shorten the prompt, lower max_tokens, max_images or beams, or raise the budget"
        )

    def _write(self, writers: Sequence[Writer], hidden: Sequence[Tensor]) -> Iterator[Event]:
        """Write a token of each document, from its last hidden states, (D) or (R, D), before the final norm."""
        language_model = self.model.language_model
        hidden = [torch.atleast_2d(hidden_RD) for hidden_RD in hidden]
        logits_NV = language_model.logits(language_model.final_norm(torch.cat(hidden))).float()
        going: list[Writer] = []
        for writer, logits_RV in zip(writers, logits_NV.split([*map(len, hidden)]), strict=True):
            try:
                yield from writer.write(logits_RV)
                going += [writer] if writer.reason is None else []
            except Exception as error:  # of its logits, or of the tokenizer
                yield from writer.fail(error)
        texts = [writer for writer in going if not writer.drawing]
        if texts:
            rows = [writer.running for writer in texts]
            tokens = [[each.tokens[-1] for each in running] for running in rows]
            embeds_ND = self._maker.embed([*chain.from_iterable(tokens)])
            for writer, embeds_RD, names in zip(
                texts, embeds_ND.split([*map(len, rows)]), tokens, strict=True
            ):
                writer.feed(embeds_RD, names)
            parents = [[each.parent for each in running] for running in rows]
            numbers = [writer.number for writer in texts]
            for number in self._lanes.continue_rows(dict(zip(numbers, parents, strict=True))):
                self._read_again(self._writers[number])
        for writer in going:
            if writer.drawing:
                writer.feed(self._maker.dream_inputs(), self._maker.dream_names())

    def _read_again(self, writer: Writer) -> None:
        """Begin a document again, all of its rows whole, as the language model cannot copy them."""
        (prompt_TD,) = self._maker.prompt_inputs([writer.sequence])
        texts = [self._maker.embed([*each.tokens]) for each in writer.running]
        writer.inputs = torch.stack([torch.cat([prompt_TD, text_TD]) for text_TD in texts])
        writer.position = 0
        self._lanes.restart(writer.number, len(texts))

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
                yield from writer.fail(error)
        images = [(writer, picture) for writer, picture in drawn if not isinstance(picture, Exception)]
        for writer, picture in images:
            yield writer.add_image(picture)
        images = [(writer, picture) for writer, picture in images if writer.limit is None]  # others end now
        read = self._maker.read_inputs([picture for _, picture in images])
        for (writer, picture), inputs in zip(images, read, strict=True):
            end = self._maker.sequencer.dream_end
            names = [end, *self._maker.read_names(picture)]
            writer.feed(torch.cat([self._maker.embed([end]), inputs]), names)

    def _check_settings(self, options: GenerationSection) -> None:
        """Raise the errors of the image size and the schedule before anything is written."""
        if options.most_images:
            check_size(self.model.image_decoder, options)
            check_schedule(self.model.image_decoder, options)
            self._negative(options)

    def _negative(self, options: GenerationSection) -> Condition | None:
        """Return the condition (of one image) from which guidance leads away; None without guidance."""
        if options.guidance == 1.0:
            return None
        text = options.negative_prompt
        if text not in self._negatives:
            negative = negative_document(text)
            check_room(self._maker.sequencer, negative)
            self._negatives[text] = self.model.condition(self.model.dream_states(negative))
            if len(self._negatives) > REMEMBERED:
                del self._negatives[next(iter(self._negatives))]
        return self._negatives[text]

    def _evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model) if self.model.training else nullcontext()


def _check_number(name: str, value: Any, *, least: int, or_none: bool) -> None:
    """Raise DreamkitError unless `value` is an integer of at least `least`, or None where that is allowed."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_integer and value >= least) and not (or_none and value is None):
        expected = f"an integer of at least {least}{' or None' if or_none else ''}"
        raise DreamkitError(f"{name}: expected {expected}, got {describe_value(value)}")
