"""Rotary embeddings that depend on a document's length: each document is computed as the library computes it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from dreamkit import ConfigError, DocumentError
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from small_language import LONGROPE, NEXT, SMALL, SWITCH, make, positions

LENGTHS = st.integers(1, 2 * SWITCH)
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
TYPES = ["sliding_attention", "full_attention"]
CASES: dict[str, dict[str, Any]] = {
    "phi3": {"original_max_position_embeddings": SWITCH, "rope_parameters": LONGROPE},
    "llama": {"rope_parameters": LONGROPE},
    "gemma3_text": {
        "head_dim": 8,
        "layer_types": TYPES,
        "sliding_window": 5,
        "rope_parameters": {"full_attention": LONGROPE, "sliding_attention": DEFAULT},
    },
    "phimoe": {
        "num_local_experts": 2,
        "rope_parameters": LONGROPE | {"short_mscale": 1.25, "long_mscale": 1.5},
    },
}
PARTS: dict[str, Any] = {}


def part_of(name: str) -> Any:
    """Return the part of a case; hypothesis asks for it in each example."""
    if name not in PARTS:
        PARTS[name] = make(CausalLM, model_type=name, **CASES[name])
        with torch.no_grad():
            for parameter in PARTS[name].parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return PARTS[name]


def document(part: Any, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the ids (1, T) of a document, and its logits (T, vocabulary) in the library's full forward pass."""
    ids = torch.randint(260, (1, length), generator=torch.Generator().manual_seed(seed))
    return ids, part.library_forward(ids)[0]


def logits(part: Any, ids: Tensor, position_ids: Tensor, segment_ids: Tensor, cache: Any = None) -> Tensor:
    hidden = part(part.embed(ids), position_ids, segment_ids, cache=cache)
    return part.logits(part.final_norm(hidden))


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


every_case = pytest.mark.parametrize("name", CASES)
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@every_case
@few
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=4))
@torch.no_grad()
def test_documents_in_one_row_are_as_alone(name: str, lengths: list[int]) -> None:
    part = part_of(name)
    documents = [document(part, length, seed) for seed, length in enumerate(lengths)]
    row = torch.cat([ids for ids, _ in documents], 1)
    actual = logits(part, row, *positions(*lengths))[0].split(lengths)
    for output, (_, expected) in zip(actual, documents, strict=True):
        assert_equal(output, expected)


@every_case
@few
@given(lengths=st.lists(LENGTHS, min_size=1, max_size=3), chunks=st.lists(st.integers(1, 9), min_size=1))
@torch.no_grad()
def test_documents_in_a_batch_with_a_cache_are_as_alone_at_each_length(
    name: str, lengths: list[int], chunks: list[int]
) -> None:
    part, cache = part_of(name), None
    cache = part.new_cache()
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = document(part, length, row)[0]
    start = 0
    while start < width:
        end = min(width, start + chunks[start % len(chunks)])
        position_ids = torch.arange(start, end).expand(len(lengths), -1)
        segment_ids = torch.stack([(position_ids[0] < length).long() - 1 for length in lengths])
        actual = logits(part, ids[:, start:end], position_ids, segment_ids, cache)
        for row, length in enumerate(lengths):
            stop = min(end, length)
            if start < stop:
                expected = part.library_forward(ids[row : row + 1, :stop])[0]
                assert_equal(actual[row, : stop - start], expected[start:stop])
        start = end


@every_case
def test_gradients_of_a_long_and_a_short_document_are_those_of_each_alone(name: str) -> None:
    part = make(CausalLM, model_type=name, **CASES[name])
    part.enable_gradient_checkpointing()
    lengths = [SWITCH + 3, SWITCH - 3]
    ids = torch.randint(260, (1, sum(lengths)))
    weight = next(part.model.parameters())

    def gradient(*losses: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(sum(losses[1:], losses[0]), weight)
        return result

    together = gradient(logits(part, ids, *positions(*lengths)).square().sum())
    alone = gradient(*(part.library_forward(each).square().sum() for each in ids.split(lengths, 1)))
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_librarys_own_pass_is_unchanged_after_a_batch() -> None:
    part = part_of("phi3")
    ids, expected = document(part, SWITCH - 1, 0)
    logits(part, torch.zeros(1, SWITCH + 1, dtype=torch.long), *positions(SWITCH + 1))
    assert_equal(part.library_forward(ids)[0], expected)


def test_layers_that_switch_at_different_lengths_are_refused() -> None:
    other = LONGROPE | {"original_max_position_embeddings": 2 * SWITCH}
    config = CASES["gemma3_text"] | {
        "rope_parameters": {"full_attention": LONGROPE, "sliding_attention": other}
    }
    with pytest.raises(
        ConfigError, match=r"longrope factors that switch at 12 and 24 tokens; .*original_max"
    ):
        make(CausalLM, model_type="gemma3_text", **config)


@pytest.mark.parametrize(
    "rope", [LONGROPE, {"rope_type": "dynamic", "factor": 2.0}], ids=["longrope", "dynamic"]
)
def test_a_model_without_positions_of_its_own_is_refused_by_its_rope_type(rope: dict[str, Any]) -> None:
    config = {
        "model_type": "qwen3_next",
        **NEXT,
        "rope_parameters": {**DEFAULT, **rope, "partial_rotary_factor": 1.0},
    }
    with pytest.raises(ConfigError, match=rf"rope_type '{rope['rope_type']}' .* longest document of a batch"):
        CausalLM.from_config(LanguageConfig(config=config))


@torch.no_grad()
def test_dynamic_frequencies_are_those_of_the_library_up_to_the_longest_document() -> None:
    limit = SMALL["max_position_embeddings"]
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    part = make(CausalLM, model_type="llama", rope_parameters=rope)
    assert part.spec.max_length == limit
    ids, expected = document(part, limit, 0)
    assert_equal(logits(part, ids, *positions(limit))[0], expected)
    ids = torch.zeros(1, limit + 1, dtype=torch.long)
    message = rf"at most {limit} tokens \(max_position_embeddings\), got {limit + 1}: .*'dynamic'"
    with pytest.raises(DocumentError, match=message):
        logits(part, ids, *positions(limit + 1))


def test_a_window_that_the_models_class_lacks_is_ignored_as_in_the_library() -> None:
    part = make(CausalLM, model_type="llama")
    part.model.config.sliding_window = 3
    assert part.spec.sliding_window is None
    ids, expected = document(part, 12, 0)
    assert_equal(logits(part, ids, *positions(12))[0], expected)
