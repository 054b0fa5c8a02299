"""Attention masks, and the positions and segments that a cache records."""

import torch
from hypothesis import given, strategies as st
from transformers import Gemma3TextConfig, LlamaConfig

from dreamkit_transformers.masks import attention_masks, visible
from dreamkit_transformers.token_cache import TokenCache

SLOTS = st.tuples(st.integers(0, 6), st.integers(-1, 2))  # position and segment


@given(st.lists(SLOTS, min_size=1, max_size=8), st.integers(1, 8), st.none() | st.integers(1, 4))
def test_a_token_sees_its_segment_up_to_its_position_within_the_window(slots, tokens, window):
    tokens = min(tokens, len(slots))
    position_ids = torch.tensor([[position for position, _ in slots]])
    segment_ids = torch.tensor([[segment for _, segment in slots]])
    mask = visible(position_ids[:, -tokens:], segment_ids[:, -tokens:], position_ids, segment_ids, window)
    assert mask.shape == (1, 1, tokens, len(slots)) and mask.dtype == torch.bool
    first = len(slots) - tokens
    for query in range(tokens):
        position, segment = slots[first + query]
        for slot, (other_position, other_segment) in enumerate(slots):
            near = window is None or position - other_position < window
            same = segment == other_segment != -1
            expected = slot == first + query or (same and other_position <= position and near)
            assert mask[0, 0, query, slot] == expected


def test_the_cache_records_positions_and_segments_of_every_slot():
    cache = TokenCache()
    position_ids, segment_ids = cache.extend(torch.tensor([[0, 1, 0]]), torch.tensor([[0, 0, -1]]))
    assert position_ids.tolist() == [[0, 1, 0]]
    position_ids, segment_ids = cache.extend(torch.tensor([[2]]), torch.tensor([[0]]))
    assert position_ids.tolist() == [[0, 1, 0, 2]]
    assert segment_ids.tolist() == [[0, 0, -1, 0]]


def test_masks_for_eager_attention_are_added_numbers():
    config = LlamaConfig(attn_implementation="eager")
    ids = torch.tensor([[0, 1]])
    slots = (ids, torch.zeros_like(ids))
    mask = attention_masks(config, *slots, *slots, dtype=torch.bfloat16, by_type=False)
    assert mask.dtype == torch.bfloat16
    assert mask[0, 0].tolist() == [[0, torch.finfo(torch.bfloat16).min], [0, 0]]


def test_each_layer_type_has_its_own_mask():
    config = Gemma3TextConfig(num_hidden_layers=6, sliding_window=2, attn_implementation="sdpa")
    ids = torch.arange(4)[None]
    slots = (ids, torch.zeros_like(ids))
    masks = attention_masks(config, *slots, *slots, dtype=torch.float32, by_type=True)
    assert masks["full_attention"][0, 0, 3].tolist() == [True] * 4
    assert masks["sliding_attention"][0, 0, 3].tolist() == [False, False, True, True]
