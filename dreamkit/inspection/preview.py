"""The first documents of a training, as a page or as JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from dreamkit.data.document_records import document_record
from dreamkit.errors import DocumentError, DreamkitError, RecipeProblem, count
from dreamkit.inspection.preview_page import article, preview_page
from dreamkit.inspection.problem_text import problem_text
from dreamkit.inspection.run_data import Place, RunData, open_run
from dreamkit.inspection.text_loss import first_text, text_loss_note
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

MOST_BATCHES: Final = 16  # whose rows a page has


def preview(recipe: Recipe, registry: Registry, documents: int, *, title: str) -> tuple[str, int]:
    """Return a page of the first `documents` of a training, and the number of those at which it would stop.

    Raises:
        RecipeError: every problem of the model and the data.
        StorageError: a disk or network fails.
    """
    run = open_run(recipe, registry)
    number = min(documents, len(run.samples))
    articles: dict[int, str] = {}
    places: dict[int, Place] = {}  # without pictures, which may be large
    texts = []
    for index in range(number):
        place = run.place(index)
        articles[index] = article(place, run)
        if place.document is not None:
            texts.append(first_text(place.document))
        places[index] = place.without_pictures()
    batches = []
    for update in islice(run.updates(number), MOST_BATCHES):
        batches += run.packed([places.get(index) or run.place(index).without_pictures() for index in update])
    loss = text_loss_note(run.sequencer.language_model, texts)
    notes = () if loss is None else (loss,)
    page = preview_page(articles, batches[:MOST_BATCHES], title=title, notes=notes, facts=_facts(run))
    return page, sum(place.problem is not None for place in places.values())


def _facts(run: RunData) -> dict[str, object]:
    sequencer, train = run.sequencer, run.recipe.train
    return {
        "data": ", ".join(section.name for section in run.recipe.data),
        "documents of an update": train.update_documents(processes=1),
        "max_length": sequencer.max_length,
        "vision tokens of an image": sequencer.vision_tokens,
        "dream queries of an image": sequencer.dream_queries,
        "seed": train.seed,
    }


def preview_lines(recipe: Recipe, registry: Registry, documents: int) -> Iterator[str]:
    """Yield the first `documents` of a training as lines of JSON, which the data set `interleaved` reads.

    Raises:
        RecipeError: every problem of the model and the data.
        DreamkitError: documents at which the training would stop.
        StorageError: a disk or network fails.
    """
    run = open_run(recipe, registry)
    problems = []
    for index in range(min(documents, len(run.samples))):
        place = run.place(index)
        try:
            if place.document is not None:
                yield json.dumps(document_record(place.document)) + "\n"
        except DocumentError as error:  # an image without a known range
            place = replace(place, problem=str(error))
        if place.problem is not None:
            message = f"place {index} of the run: {place.problem}"
            problems.append(RecipeProblem(recipe.place("data"), "data", message))
    if problems:
        raise DreamkitError(problem_text(problems))


def unusable_line(documents: int) -> str:
    """Return the line about documents of a page at which a training would stop."""
    return f"training would stop at {count(documents, 'document')}; the page has the reasons"
