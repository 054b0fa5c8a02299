"""The choice of a token: equal to the processors of transformers, and to what it was before it had more settings."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import tiny
from dreamkit.document import Document, Image, Text
from dreamkit.model.events import TextPiece, collect
from dreamkit.model.token_choice import TokenChooser, penalize, sampling_distribution
from dreamkit.recipe.generation_section import GenerationSection
from small_language import library_model

MODEL = tiny.model()
OPTIONS = st.builds(
    GenerationSection,
    temperature=st.floats(0.05, 10),
    top_k=st.one_of(st.none(), st.integers(0, 60)),
    top_p=st.floats(0.01, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    repetition_penalty=st.floats(0.1, 10),
)
SEEDS = st.integers(0, 2**32)


def random_logits(seed: int, size: int) -> Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distribution(logits: Tensor, options: GenerationSection) -> Tensor:
    """Return the probability of each token."""
    probabilities, ids = sampling_distribution(logits, options)
    assert (probabilities.diff() <= 0).all() and probabilities[0] > 0
    return torch.zeros_like(logits).index_copy(0, ids, probabilities / probabilities.sum())


def chooser(options: GenerationSection, seed: int = 0, seen: tuple[int, ...] = ()) -> TokenChooser:
    suppressed = torch.tensor([0, 2], dtype=torch.long)
    return TokenChooser(options, torch.Generator().manual_seed(seed), suppressed, 1, set(seen))


@given(SEEDS, st.integers(1, 50), OPTIONS, st.lists(st.integers(0, 49), max_size=20))
def test_the_distribution_is_that_of_the_processors_of_transformers(
    seed: int, size: int, options: GenerationSection, prompt: list[int]
) -> None:
    logits, prompt = random_logits(seed, size), [token % size for token in prompt]
    processors: Any = LogitsProcessorList()
    if prompt:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    processors.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    processors.append(MinPLogitsWarper(options.min_p))
    expected = processors(torch.tensor([prompt], dtype=torch.long), logits[None])[0].softmax(-1)
    penalized = penalize(logits, set(prompt), options.repetition_penalty)
    actual = distribution(penalized, options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    # the sum of the others may round to 1, so that top_p leaves out what is less likely than that
    assert (((actual > 0) == (expected > 0)) | (expected < 1e-12)).all()


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_top_k_keeps_tokens_as_likely_as_the_last_one(scores: list[int], k: int) -> None:
    logits = torch.tensor(scores, dtype=torch.float64)
    expected = TopKLogitsWarper(k)(None, logits[None])[0]  # type: ignore[arg-type]
    kept = distribution(logits, GenerationSection(temperature=1.0, top_k=k))
    assert torch.equal(kept > 0, expected > -torch.inf)


@pytest.mark.parametrize("do_sample", [True, False])
def test_the_order_of_operations_is_that_of_generate(do_sample: bool) -> None:
    """`generate` returns the scores after its processors; here of a model whose logits vary enough."""
    library = library_model(MODEL.language_model)
    library.get_output_embeddings().weight.data.mul_(30)
    options = GenerationSection(
        temperature=1.7 if do_sample else 0.0, top_k=9, top_p=0.8, min_p=0.05, repetition_penalty=1.4
    )
    prompt = [5, 9, 9, 70, 71, 72]
    named = {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05} if do_sample else {}
    out = library.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=do_sample,
        repetition_penalty=1.4,
        suppress_tokens=[0, 2],
        max_new_tokens=1,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **named,
    )
    (logits,), (scores,) = out.logits[0], out.scores[0]
    if do_sample:
        allowed = penalize(logits, set(prompt), 1.4).index_fill(0, torch.tensor([0, 2]), -torch.inf)
        actual, expected = distribution(allowed.double(), options), scores.double().softmax(-1)
        assert 1 < (expected > 0).sum() < 9
        assert torch.equal(actual > 0, expected > 0)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    else:
        score = chooser(options, seen=tuple(prompt)).choose(logits)
        assert score is not None and score.token == scores.argmax() == out.sequences[0, -1]


@pytest.mark.parametrize("penalty", [1.0, 1.1, 1.5, 4.0, 0.5])
def test_greedy_text_with_a_repetition_penalty_is_that_of_generate(penalty: float) -> None:
    library = library_model(MODEL.language_model)
    rows = library.get_output_embeddings().weight.shape[0]
    texts = []
    for prompt in ("a", "the same, the same, the same", "Text with other words"):
        ids = MODEL.sequencer().prompt(Document((Text(prompt),))).ids
        suppressed = {*MODEL.token_ids.values(), *MODEL.language_model.suppressed_ids}
        out = library.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            repetition_penalty=penalty,
            suppress_tokens=sorted(token for token in suppressed if token < rows),
            max_new_tokens=40,
            pad_token_id=0,
            eos_token_id=MODEL.language_model.spec.eos_ids[0],
        )
        events = MODEL.generate(
            prompt, repetition_penalty=penalty, max_tokens=40, max_images=0, ignore_eos=True
        )
        written = [token for event in events if isinstance(event, TextPiece) for token in event.ids]
        assert written[: out.shape[1] - len(ids)] == out[0, len(ids) :].tolist()
        texts.append(tuple(written))
    assert len({*texts}) > 1


def test_the_repetition_penalty_counts_images_of_the_prompt_and_drawn_ones() -> None:
    """With a high penalty, the dream token is written once: the one of a prompt's drawn image counts too."""
    logits = torch.full((500,), -9.0)
    logits[MODEL.token_ids["<dream_start>"]] = 5.0
    logits[MODEL.language_model.spec.eos_ids[0]] = 1.0
    drawn = Document((Text("a"), Image(tiny.picture(0), draw=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MODEL.language_model, "logits", lambda hidden: logits.expand(*hidden.shape[:-1], -1).clone()
        )
        images = [
            len(collect(MODEL.generate(prompt, repetition_penalty=penalty))[0].images)
            for prompt in ("a", drawn)
            for penalty in (1.0, 10.0)
        ]
    assert images == [2, 1, 3, 1]


@settings(max_examples=50)
@given(
    SEEDS,
    st.integers(3, 400),
    st.sampled_from([0.0, 1e-300, 0.3, 1.0, 1.7, 1e300]),
    st.one_of(st.just(1.0), st.floats(0.01, 1)),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_without_the_new_settings_a_token_is_that_of_earlier_releases(
    seed: int, size: int, temperature: float, top_p: float, dtype: torch.dtype
) -> None:
    """The function below is that of release 0.1.0; a difference in the last bit would change some token."""
    logits = random_logits(seed, size).to(dtype)
    options = GenerationSection(temperature=temperature, top_p=top_p)
    now, then = chooser(options, seed), torch.Generator().manual_seed(seed)
    for _ in range(5):
        expected = earlier_token(logits.clone(), options, then)
        score = now.choose(logits)
        assert score is not None and score.token == expected
        logits = logits.roll(1)
    assert torch.equal(now.generator.get_state(), then.get_state())
    if temperature:
        probabilities, order = earlier_distribution(logits.double(), options)
        actual = sampling_distribution(logits.double(), options)
        assert torch.equal(actual[0], probabilities) and torch.equal(actual[1], order)


def earlier_distribution(logits: Tensor, options: GenerationSection) -> tuple[Tensor, Tensor]:
    scaled = (logits - logits.max()) / options.temperature
    probabilities, order = scaled.softmax(-1).sort(descending=True)
    outside = probabilities.cumsum(-1) - probabilities >= options.top_p
    outside[0] = False
    probabilities[outside] = 0
    return probabilities, order


def earlier_token(logits: Tensor, options: GenerationSection, generator: torch.Generator) -> int:
    logits[[0, 2]] = -torch.inf
    if options.temperature == 0:
        return int(logits.argmax())
    probabilities, order = earlier_distribution(logits.cpu().double(), options)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


@given(SEEDS, OPTIONS, st.integers(0, 2))
def test_a_choice_changes_nothing_but_the_state_of_its_document(
    seed: int, options: GenerationSection, log_probs: int
) -> None:
    logits = random_logits(seed, 20)
    before = logits.clone()
    plain = chooser(options, seed).choose(logits)
    scored = chooser(replace(options, log_probs=log_probs, dream_probs=True), seed).choose(logits)
    assert torch.equal(logits, before)
    assert plain is not None and scored is not None and plain.token == scored.token
    assert plain == type(plain)(plain.token)


def test_a_document_samples_the_same_text_beside_others_with_the_new_settings() -> None:
    options: dict[str, Any] = {
        "temperature": 1.5,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.3,
        "max_images": 0,
        "max_tokens": 20,
    }
    together = collect(MODEL.generate(["a", "b and b and b", ""], seed=[1, 2, 3], **options))
    for number, prompt in enumerate(["a", "b and b and b", ""]):
        (alone,) = collect(MODEL.generate(prompt, seed=number + 1, **options))
        assert alone.text == together[number].text
