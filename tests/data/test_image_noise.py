"""Random numbers of images: the same in every batch, with and without a cache, and for every kind of decoder."""

from collections.abc import Sequence as Sequences
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

import caches
import tiny
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.image_noise import ImageNoise
from dreamkit.document import Document, Image, Text
from dreamkit.model.model import DreamModel
from meta.parts import NoPosterior

MODEL = tiny.model().float()
DOCUMENTS = tiny.documents()
PER_IMAGE = ("noise", "posterior_noise", "timesteps", "drop_M")


class RandomEncoder(NoPosterior):
    """A decoder without a posterior, whose own `encode` adds noise."""

    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return targets_NCHW + torch.randn(targets_NCHW.shape, generator=generator)


def collator(model: DreamModel = MODEL, seed: int = 0) -> Collator:
    collator = model.collator(caches.recipe(train={"seed": seed}))
    return replace(collator, condition_drop=0.5)


def batch(collator: Collator, places: Sequences[int], documents: Sequences[Document] = DOCUMENTS) -> Batch:
    """Return the batch of documents at their places, which repeat `documents`."""
    return collator.collate(
        [
            replace(collator.sequencer.sequence(documents[place % len(documents)]), place=place)
            for place in places
        ]
    )


def images(batch: Batch) -> dict[tuple[int, int], list[Tensor]]:
    """Return the random numbers of each image, by the number of its document in the batch and its own number."""
    numbers: dict[tuple[int, int], list[Tensor]] = {}
    for image, document in enumerate(batch.draw_document_M.tolist()):
        number = sum(other == document for other, _ in numbers)
        numbers[document, number] = [getattr(batch, name)[image] for name in PER_IMAGE]
    return numbers


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_random_numbers_do_not_depend_on_the_batch(places: list[int], seed: int) -> None:
    make = collator(seed=seed)
    for (document, number), together in images(batch(make, places)).items():
        if document < len(places):  # not a dummy
            alone = images(batch(make, [places[document]]))[0, number]
            assert all(map(torch.equal, together, alone))


def test_every_image_and_every_use_has_other_noise() -> None:
    interleaved = DOCUMENTS[3:4]
    first, other = (batch(collator(seed=seed), range(8), interleaved) for seed in (0, 1))
    assert first.noise is not None and first.posterior_noise is not None and other.noise is not None
    assert len(first.noise) == 16
    every = torch.cat([first.noise, first.posterior_noise, other.noise]).flatten(1)
    correlations = torch.corrcoef(every) - torch.eye(len(every))
    assert correlations.abs().max() < 5 / every.shape[1] ** 0.5


def test_conditions_are_dropped_with_their_probability() -> None:
    """The share of n has a deviation of sqrt(p (1 - p) / n)."""
    noise = ImageNoise(0, MODEL.image_decoder)
    drop_M = noise.fields([(place, 0) for place in range(4000)], (1, 1, 1), 0.1)["drop_M"]
    assert abs(drop_M.float().mean() - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5
    assert "drop_M" not in noise.fields([(0, 0)], (1, 1, 1), 0.0)


def test_noise_and_timesteps_have_the_distributions_of_the_decoder() -> None:
    fields = ImageNoise(3, MODEL.image_decoder).fields([(place, 0) for place in range(500)], (4, 8, 8), 0.0)
    for name in ("noise", "posterior_noise"):
        assert fields[name].dtype == torch.float32
        assert abs(fields[name].mean()) < 0.02 and abs(fields[name].std() - 1) < 0.02
    assert fields["timesteps"].dtype == torch.int64
    quartiles = torch.quantile(fields["timesteps"].float(), torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([250.0, 500.0, 750.0]), rtol=0, atol=90)


def test_documents_outside_a_run_have_no_random_numbers() -> None:
    outside = collator()(DOCUMENTS)
    mixed = collator().collate(
        [
            collator().sequencer.sequence(DOCUMENTS[0]),
            replace(collator().sequencer.sequence(DOCUMENTS[3]), place=1),
        ]
    )
    assert all(getattr(each, name) is None for each in (outside, mixed) for name in PER_IMAGE)


def test_a_step_of_a_run_uses_no_global_generator() -> None:
    """Text alone included: its dummy image has random numbers, too."""
    for places in (range(5), [2]):
        made = batch(collator(), places)
        state = torch.get_rng_state()
        MODEL.train()(made).loss.backward()
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("places", [range(5), [2, 7], [0]])
def test_cached_latents_equal_those_without_a_cache(
    places: Sequences[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    recipe = caches.recipe(folder)
    caches.write(folder, recipe)
    model = caches.build_model(recipe)
    tables = caches.open_with(recipe, model)
    plain, cached = (
        batch(replace(collator(model), cache=cache), places, tiny.documents()) for cache in (None, tables)
    )
    assert cached.latent_std_Mchw is not None and cached.targets_MCHW is None
    for name in PER_IMAGE:
        assert torch.equal(getattr(plain, name), getattr(cached, name))
    torch.testing.assert_close(model.latents(cached), model.latents(plain), rtol=1e-5, atol=1e-5)


def test_a_decoder_without_posterior_encodes_each_image_with_its_own_generator() -> None:
    model = tiny.model().float()
    model.image_decoder = RandomEncoder.from_config(RandomEncoder.tiny_config())  # type: ignore[assignment]
    documents = [Document((Text("a"), *[Image(tiny.picture(n), draw=True)] * 2)) for n in range(3)]
    make = collator(model)
    together = batch(make, range(3), documents)
    assert together.posterior_noise is None and together.targets_MCHW is not None
    latents = model.latents(together)
    assert torch.equal(latents, model.latents(together))
    assert not torch.isclose(latents[0], latents[1]).any()  # two images of one document
    alone = torch.cat([model.latents(batch(make, [place], documents)) for place in range(3)])
    assert torch.equal(latents, alone)
    noise = latents - together.targets_MCHW
    assert abs(noise.std() - 1) < 0.05
