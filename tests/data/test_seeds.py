"""Random numbers of a document: functions of seed and place, with a stream for each use."""

import random

import pytest
import torch
from hypothesis import given, strategies as st

import tiny
from dreamkit.data.dataset import Dataset
from dreamkit.data.mixture import Mixture
from dreamkit.data.samples import Samples
from dreamkit.data.seeds import choices, generator, stream_seed
from dreamkit.document import Document, Text

PLACES = range(12)


class Captions(Dataset):
    """A data set with several captions, of which a training sees one, chosen at random."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Document:
        return Document((Text(f"{index}: first"),), name=str(index))

    def sample(self, index: int, choices: random.Random) -> Document:
        return Document((Text(f"{index}: {choices.randrange(1000)}"),), name=str(index))


def samples(seed: int) -> Samples:
    return Samples(Mixture([Captions()], [1.0], seed, length=len(PLACES)), tiny.model().sequencer())


def test_a_data_set_makes_the_choices_of_the_seed_and_the_place() -> None:
    first, second, other = (samples(seed) for seed in (0, 0, 1))
    forwards = [first.document(place).text for place in PLACES]
    assert [second.document(place).text for place in reversed(PLACES)] == forwards[::-1]
    assert len({text.split(": ")[1] for text in forwards}) == len(PLACES)
    assert [other.document(place).text for place in PLACES] != forwards
    number, index = first.order.place(5)
    assert forwards[5] == first.order.data_sets[number].sample(index, choices(0, 5)).text


streams = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**48),
    st.sampled_from(["choices", "noise"]),
    st.integers(0, 2**16),
)


@given(st.lists(streams, min_size=2, max_size=20, unique=True))
def test_no_two_streams_share_a_seed(keys: list[tuple[int, int, str, int]]) -> None:
    seeds = [stream_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**64 for seed in seeds)
    assert seeds == [stream_seed(*key) for key in keys]


# computed by coreutils: printf "(3, 14, 'noise', 1)" | b2sum -l 64
@pytest.mark.parametrize(("key", "digest"), [((3, 14, "noise", 1), "3e569633b265f379")])
def test_a_seed_is_the_blake2_hash_of_its_stream(key: tuple[int, int, str, int], digest: str) -> None:
    assert stream_seed(*key) == int.from_bytes(bytes.fromhex(digest), "little")


def test_neighbouring_streams_have_no_correlation() -> None:
    """The correlation of n pairs of independent numbers has a deviation of 1 / sqrt(n)."""
    numbers = torch.stack(
        [torch.randn(10_000, generator=generator(0, place, "noise", 0)) for place in PLACES]
    )
    correlations = torch.corrcoef(numbers) - torch.eye(len(PLACES))
    assert correlations.abs().max() < 5 / 10_000**0.5
