"""Checks of how documents are read: by number, again, and for one use in training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from dreamkit.testing.check import check
from dreamkit.testing.dataset_subject import DatasetSubject, expect_same_document
from dreamkit.testing.expect import ContractError, expect, expect_true

READS = 3  # of each document
FAR = 1000  # documents past the end
SEEDS = (20_250_001, 20_250_002)  # of the global generators; no one else's
seeds = st.integers(0, 999)


def numbers(subject: DatasetSubject) -> st.SearchStrategy[int]:
    """Return a strategy of the numbers of documents."""
    return st.sampled_from(subject.numbers)


def orders(subject: DatasetSubject) -> st.SearchStrategy[list[int]]:
    """Return a strategy of orders in which documents are read."""
    return st.lists(numbers(subject), min_size=1, max_size=6)


@check("dataset")
def length(subject: DatasetSubject) -> None:
    """The number of documents is at least 1 and never changes.

    Every place of a run has its document, also after the run is resumed.
    """
    dataset = subject.make()
    before = len(dataset)
    for index in subject.numbers:
        subject.document(dataset, index)
    subject.call_text = "len(dataset) after reading documents"
    expect(len(dataset), before, "len(dataset)", "as before")


@check("dataset", order=orders)
def same_document(subject: DatasetSubject, order: list[int]) -> None:
    """`dataset[index]` is the same document each time, in whatever order documents are read.

    A run can be repeated and resumed, and the cache of a document's images belongs to this document.
    """
    dataset = subject.make()
    first = {index: subject.document(dataset, index) for index in order}
    for index in order * (READS - 1):
        document = subject.document(dataset, index)
        expect_same_document(document, first[index], f"dataset[{index}]", "an earlier read")


@check("dataset")
def index_bounds(subject: DatasetSubject) -> None:
    """A number below 0 or past the end is an IndexError.

    A mistake in a number is found at once, instead of training on another document; `for` ends at the last one.
    """
    dataset = subject.make()
    size = len(dataset)
    for index in (-1, -size, size, size + FAR):
        _expect_index_error(subject, f"dataset[{index}]", partial(dataset.__getitem__, index))
        sample = f"dataset.sample({index}, random.Random(0))"
        _expect_index_error(subject, sample, partial(dataset.sample, index, random.Random(0)))


def _expect_index_error(subject: DatasetSubject, call: str, read: Callable[[], Any]) -> None:
    subject.call_text = call
    try:
        read()
    except IndexError:
        return
    raise ContractError(f"expected an IndexError from {call}, got a document")


@check("dataset", index=numbers, seed=seeds)
def sample_repeats(subject: DatasetSubject, index: int, seed: int) -> None:
    """`sample` depends only on its index and its Random, and on no global generator.

    The choices of a document are the same for any number of workers and devices, and in a resumed run.
    """
    samples = []
    for other in SEEDS:
        with _global_generators(other):
            samples.append(subject.sample(subject.part, index, seed))
    expect_same_document(samples[1], samples[0], subject.call_text, "an equal call")


@check("dataset", seed=seeds)
def sample_of_document(subject: DatasetSubject, seed: int) -> None:
    """A sample has the name of its document.

    The record of a skipped sample names the file to correct.
    """
    for index in subject.numbers:
        name = subject.document(subject.part, index).name
        expect(
            subject.sample(subject.part, index, seed).name, name, "the sample's name", "as of its document"
        )


@check("dataset", index=numbers, seed=seeds)
def random_state(subject: DatasetSubject, index: int, seed: int) -> None:
    """Building and reading change no global generator: neither Python's, nor NumPy's, nor torch's.

    Noise, dropout and the order of a run do not depend on which process reads the data.
    """
    with _global_generators(SEEDS[0]):
        before = _states()
        dataset = subject.make()
        subject.document(dataset, index)
        subject.sample(dataset, index, seed)
        after = _states()
    subject.call_text = f"building a data set, dataset[{index}] and dataset.sample"
    for name, state in after.items():
        expect_true(state == before[name], "another state", f"the state of {name} as before")


def _states() -> dict[str, Any]:
    """Return the states of the global generators by name, in a form that `==` compares."""
    return {
        "random": random.getstate(),
        "numpy.random": repr(np.random.get_state(legacy=False)),
        "torch's generator": torch.get_rng_state().tolist(),
    }


@contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Seed the global generators; restore their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
