"""The continuation of several prompts, by an engine of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamkit.document import Document
from dreamkit.model.document_seeds import seeds_of
from dreamkit.model.engine import Engine
from dreamkit.model.events import DocumentFailed, Event
from dreamkit.recipe.settings import generation_section

if TYPE_CHECKING:
    from dreamkit.model.model import DreamModel


def generate(
    model: DreamModel, prompts: Sequence[Document], seed: int | Sequence[int], settings: Mapping[str, Any]
) -> Iterator[Event]:
    """Yield the events of all prompts. Arguments and errors are those of `DreamModel.generate`."""
    seeds = seeds_of(seed, len(prompts))
    options = generation_section(settings, None if model.recipe is None else model.recipe.generation)
    engine = Engine(model, prefix_bytes=0)  # no document comes later
    for prompt, each in zip(prompts, seeds, strict=True):
        engine.submit(prompt, options, each)
    for event in engine.drain():
        if isinstance(event, DocumentFailed):
            raise event.error
        yield event
