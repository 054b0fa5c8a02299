"""Each process has its documents of an update, in as few forward passes as the recipe allows."""

from itertools import chain
from typing import Any

import pytest

import layouts
from dreamkit.data.mixture import run_mixture
from dreamkit.data.samples import Samples
from dreamkit.data.updates import Updates, divide
from dreamkit.model.model import DreamModel
from tiny import model as tiny_model


@pytest.fixture(scope="module")
def model() -> DreamModel:
    return tiny_model()


def updates(model: DreamModel, rank: int = 0, processes: int = 1, **settings: Any) -> Updates:
    recipe = layouts.recipe(condition_drop=0.5, **settings)
    documents = recipe.train.update_documents(processes)
    collator = model.collator(recipe)
    samples = Samples(run_mixture(recipe, [layouts.TinyDocuments()], documents), collator.sequencer)
    return Updates(samples, collator, recipe.train, documents, rank=rank, processes=processes)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "settings",
    [
        {"global_batch": 7},
        {"global_batch": 7, "micro_batch": 1},
        {"global_batch": 7, "micro_batch": 2, "packing": False},
        {"batch_size": 2, "accumulation": 2},
    ],
    ids=str,
)
def test_the_processes_share_the_documents_of_an_update(
    model: DreamModel, processes: int, settings: dict[str, Any]
) -> None:
    of_processes = [updates(model, rank, processes, **settings) for rank in range(processes)]
    size = of_processes[0].global_batch
    for number in range(len(of_processes[0])):
        places = [[batch.places for batch in each[number]] for each in of_processes]
        expected = [
            [*range(number * size + rank, (number + 1) * size, processes)] for rank in range(processes)
        ]
        assert [sorted(chain(*each)) for each in places] == expected
    assert len(of_processes[0]) == layouts.STEPS


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_a_pass_has_at_most_so_many_rows_of_documents(model: DreamModel, micro_batch: int) -> None:
    each = updates(model, global_batch=60, micro_batch=micro_batch)
    sequences = [each.samples[place] for place in range(60)]
    rows = each.collator.rows(sequences)
    parts = divide(sequences, each.collator, each.train)
    assert len(parts) == -(-len(rows) // micro_batch) > 1
    of_row = {index: number for number, row in enumerate(rows) for index in row}
    by_place = [[of_row[sequence.place or 0] for sequence in part] for part in parts]
    assert all(len({*numbers}) <= micro_batch for numbers in by_place)
    assert sum(len({*numbers}) for numbers in by_place) == len(rows)  # no row is divided


def test_an_idle_batch_has_no_document(model: DreamModel) -> None:
    batch = updates(model, global_batch=1).collator.collate([])
    assert batch.places == () and batch.counts.tolist() == [0, 0] and not batch.draw_weight_M.any()
    losses = model(batch)
    losses.loss.backward()
    assert float(losses.loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert batch.noise is not None  # it takes no random numbers of the process
