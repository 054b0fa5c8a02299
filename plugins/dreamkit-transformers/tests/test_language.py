"""What a language model computes: the library's hidden states and logits, packed, padded and with a cache."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import MistralConfig, MistralForCausalLM

from dreamkit_transformers.causal_lm import LanguageConfig
from dreamkit_transformers.families import Mistral
from dreamkit_transformers.llama import Llama
from small_language import TOKENS, make, positions, write


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_hidden_states_and_logits_are_the_librarys(tmp_path, changes):
    folder, model = write(tmp_path, **changes)
    part = Llama.from_pretrained(LanguageConfig(pretrained=folder))
    ids = torch.randint(260, (2, 9))
    position_ids, segment_ids = (each.expand(2, -1) for each in positions(9))
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True)
        hidden = part(part.embed(ids), position_ids, segment_ids)
        normed = part.final_norm(hidden)
        torch.testing.assert_close(normed, expected.hidden_states[-1])
        torch.testing.assert_close(part.logits(normed), expected.logits)
        assert not torch.allclose(hidden, normed)
        weight, eps, offset = part.norm_weights
        by_hand = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * (offset + weight)
        torch.testing.assert_close(by_hand, normed)


documents = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@pytest.mark.parametrize("family", [Llama, Mistral])
@settings(deadline=None, max_examples=15)
@given(lengths=documents, padding=st.integers(0, 3))
def test_packed_and_padded_is_each_document_alone(family, lengths, padding):
    part = make(family)
    texts = [torch.randn(1, length, 32) for length in lengths]
    position_ids, segment_ids = positions(*lengths)
    embeds = torch.cat([*texts, torch.randn(1, padding, 32)], dim=1)
    position_ids = torch.cat([position_ids, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    segment_ids = torch.cat([segment_ids, torch.full((1, padding), -1)], dim=1)
    with torch.no_grad():
        together = part(embeds, position_ids, segment_ids)
        assert together.isfinite().all()
        apart = torch.cat([part(text, *positions(text.shape[1])) for text in texts], dim=1)
    torch.testing.assert_close(together[:, : sum(lengths)], apart, atol=1e-5, rtol=1e-5)


def test_the_sliding_window_is_the_librarys(tmp_path):
    folder, model = write(tmp_path, MistralForCausalLM, MistralConfig, sliding_window=3)
    part = Mistral.from_pretrained(LanguageConfig(pretrained=folder))
    ids = torch.randint(260, (1, 12))
    with torch.no_grad():
        hidden = part(part.embed(ids), *positions(12))
        torch.testing.assert_close(part.logits(part.final_norm(hidden)), model(ids).logits)
    wide = make(Mistral, sliding_window=None)
    narrow = make(Mistral)
    wide.load_state_dict(narrow.state_dict())
    embeds = torch.randn(1, 12, 32)
    assert not torch.allclose(wide(embeds, *positions(12))[:, -1], narrow(embeds, *positions(12))[:, -1])


@pytest.mark.parametrize("family", [Llama, Mistral])
@settings(deadline=None, max_examples=15)
@given(calls=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5))
def test_a_cache_with_holes_is_one_full_pass(family, calls):
    """Two documents go on by different numbers of tokens a call; the shorter leaves empty slots behind it."""
    part = make(family)
    calls = [call for call in calls if any(call)]
    lengths = [sum(call[row] for call in calls) for row in range(2)]
    texts = [torch.randn(1, max(length, 1), 32) for length in lengths]
    cache, done = part.new_cache(), [0, 0]
    pieces = [[], []]
    with torch.no_grad():
        for call in calls:
            width = max(call)
            embeds = torch.randn(2, width, 32)
            position_ids = torch.randint(9, (2, width))
            segment_ids = torch.full((2, width), -1)
            for row, count in enumerate(call):
                start, end = done[row], done[row] + count
                embeds[row, :count] = texts[row][0, start:end]
                position_ids[row, :count] = torch.arange(start, end)
                segment_ids[row, :count] = 0
                done[row] = end
            hidden = part(embeds, position_ids, segment_ids, cache)
            assert hidden.isfinite().all()
            for row, count in enumerate(call):
                pieces[row].append(hidden[row, :count])
        for row, length in enumerate(lengths):
            if length:
                whole = part(texts[row], *positions(length))[0]
                torch.testing.assert_close(torch.cat(pieces[row]), whole, atol=1e-5, rtol=1e-5)


def test_random_weights_come_from_the_global_generator():
    first, same, other = (make(seed=seed).state_dict()["model.lm_head.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_gradient_checkpointing_of_a_frozen_model():
    """It recomputes where there is something to differentiate, changes no gradient, and leaves a cache alone."""
    part = make()
    part.requires_grad_(False)
    embeds = torch.randn(1, 5, 32)
    calls = []
    part.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))

    def gradient():
        leaf = embeds.clone().requires_grad_()
        part(leaf, *positions(5)).square().sum().backward()
        return leaf.grad

    expected = gradient()
    assert len(calls) == 1
    part.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), expected)
    assert len(calls) == 3  # once forward, once again backward
    cache = part.new_cache()
    with torch.no_grad():
        position_ids, segment_ids = positions(5)
        part(embeds[:, :3], position_ids[:, :3], segment_ids[:, :3], cache)
        last = part(embeds[:, 3:], position_ids[:, 3:], segment_ids[:, 3:], cache)
        torch.testing.assert_close(last, part(embeds, position_ids, segment_ids)[:, 3:])


def test_a_part_moves_by_state_dict():
    first, second = make(seed=1), make(seed=2)
    for part in (first, second):
        part.add_tokens(TOKENS)
    second.load_state_dict(first.state_dict())
    ids = torch.tensor([[1, 260, 7]])
    normed = [part.final_norm(part(part.embed(ids), *positions(3))) for part in (first, second)]
    assert torch.equal(first.logits(normed[0]), second.logits(normed[1]))
