"""Attention within each document: results of today's masks, no mask, and the FLOPs of the documents."""

from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dreamkit.data.packing import row_cost
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.document_attention import NAME, document_attention

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 4096}
GATED = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 2}
TYPES = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
HEADS = {"head_dim": 8}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "long_factor": [2.0, 3.0],
    "short_factor": [1.0, 1.5],
    "original_max_position_embeddings": 6,
    "factor": 4.0,
}
APART = {
    "llama": GATED,
    "mistral": {**GATED, "sliding_window": 4},
    "qwen3": {**GATED, **HEADS},
    "gemma": {**GATED, **HEADS},
    "gemma3_text": {**GATED, **TYPES, **HEADS},
    "phi": GATED,
    "phi3": {**GATED, "rope_parameters": LONG_ROPE},
    "gpt_neox": {**SIZES, "intermediate_size": 24},
    "opt": {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "cohere2": {**GATED, **TYPES},
    "olmo2": GATED,
}
UNDER_MASKS = {
    "gemma2": {**GATED, **TYPES, **HEADS},  # a soft cap
    "gpt_oss": {**GATED, **TYPES, **HEADS, "num_local_experts": 4},  # sinks
    "falcon": {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_hidden_size": 24},
}
ROWS = st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=3).filter(
    lambda rows: any(rows)
)


def make(model_type: str, config: dict) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM.from_config(LanguageConfig(config={"model_type": model_type, **config})).eval()


PARTS = {name: make(name, config) for name, config in APART.items()}


def packed(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, list[list[tuple[int, int]]]]:
    """Return positions, segments and spans of rows of documents of these lengths, padded."""
    width = max(map(sum, rows)) + 1
    position_ids, segment_ids = torch.zeros(len(rows), width).long(), torch.full((len(rows), width), -1)
    spans = [[*pairwise([0, *accumulate(row)])] for row in rows]
    for row, documents in enumerate(spans):
        for number, (start, stop) in enumerate(documents):
            position_ids[row, start:stop] = torch.arange(stop - start)
            segment_ids[row, start:stop] = number
    return position_ids, segment_ids, spans


@pytest.mark.parametrize("name", APART)
@settings(max_examples=10, deadline=None)
@given(ROWS)
def test_hidden_states_and_gradients_equal_those_under_masks(name, rows):
    part = PARTS[name]
    assert part.spec.document_attention
    position_ids, segment_ids, spans = packed(rows)
    embeds = torch.randn(*position_ids.shape, 16, requires_grad=True)
    results = []
    for documents in (None, spans):
        hidden = part(embeds, position_ids, segment_ids, spans=documents)
        own = hidden[segment_ids >= 0]
        assert hidden.isfinite().all()
        parameters = [each for each in part.model.parameters() if each.requires_grad]
        loss = own.square().sum() + own.sum()
        gradients = torch.autograd.grad(
            loss, [embeds, *parameters], allow_unused=True, materialize_grads=True
        )
        results.append((own, *gradients))
    largest = max(each.abs().max().item() for each in results[0])
    for under_masks, apart in zip(*results, strict=True):
        torch.testing.assert_close(apart, under_masks, rtol=1e-5, atol=1e-6 * largest)


class Squares(TorchDispatchMode):
    """The shapes of results with two dimensions of at least the length of a row."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.shapes = length, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and sum(size >= self.length for size in tensor.shape) > 1:
                self.shapes.append((str(func), tuple(tensor.shape)))
        return result


@pytest.mark.parametrize("name", APART)
def test_no_mask_over_a_row_is_made(name):
    position_ids, segment_ids, spans = packed(
        [[9] * 20, [9] * 19]
    )  # rows of 181, longer than the width of layers
    embeds = torch.randn(*position_ids.shape, 16)
    with Squares(position_ids.shape[1]) as squares:
        PARTS[name](embeds, position_ids, segment_ids, spans=spans)
    assert squares.shapes == []
    with Squares(position_ids.shape[1]) as squares:
        PARTS[name](embeds, position_ids, segment_ids)
    assert squares.shapes


@pytest.mark.parametrize("name", UNDER_MASKS)
def test_a_model_with_another_attention_runs_under_masks(name):
    part = make(name, UNDER_MASKS[name])
    assert part.spec.packing and not part.spec.document_attention


def test_a_gemma_2_without_a_soft_cap_needs_no_mask():
    part = make("gemma2", {**GATED, **TYPES, "attn_logit_softcapping": None})
    assert part.spec.document_attention


def flops(part: CausalLM, lengths: list[int]) -> int:
    position_ids, segment_ids, spans = packed([lengths])
    embeds = torch.randn(1, position_ids.shape[1], 16, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        part(embeds, position_ids, segment_ids, spans=spans).sum().backward()
    return counter.get_total_flops()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(8, 300), min_size=1, max_size=8))
def test_flops_of_a_row_are_those_of_its_documents(lengths):
    part = PARTS["llama"]
    alone = sum(flops(part, [length]) for length in lengths)
    assert abs(flops(part, lengths) / alone - 1) < 0.05


def test_an_argument_of_attention_that_is_not_known_is_refused():
    tensors = [torch.randn(1, 2, 4, 8) for _ in range(3)]
    for spans in (None, [[(0, 4)]]):
        with pytest.raises(NotImplementedError, match="block_indices"):
            document_attention(torch.nn.Module(), *tensors, None, spans=spans, block_indices=torch.zeros(1))


def test_a_model_with_sparse_blocks_keeps_its_own_attention():
    sizes = {**GATED, **HEADS, "num_local_experts": 4, "layer_types": ["minimax_m3_sparse"] * 2}
    part = make("minimax_m3_vl_text", sizes)
    assert not part.spec.document_attention and part.model.config._attn_implementation != NAME


@pytest.mark.parametrize("by_document", [True, False])
def test_the_cost_of_rows_is_that_of_their_flops(by_document):
    """Weights of a layer are about 12 D^2: 4 of attention and 3 x 8 / 3 of a gated layer."""
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128}
    part = make("llama", {**sizes, "max_position_embeddings": 4096})
    cost = row_cost(replace(part.spec, document_attention=by_document))
    ratios = []
    for documents in (1, 2, 4, 8):
        position_ids, segment_ids, spans = packed([[100] * documents])
        embeds = torch.randn(1, position_ids.shape[1], 48)
        named = {"spans": spans} if by_document else {}
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            part(embeds, position_ids, segment_ids, **named)
        # attention within documents is the same in whatever rows they are
        pairs = 4 * 48 * 2 * documents * 100**2 if by_document else 0
        ratios.append((counter.get_total_flops() - pairs) / cost(position_ids.shape[1]))
    assert max(ratios) < 1.05 * min(ratios)


def test_a_cache_filled_by_documents_continues_as_under_masks():
    part = PARTS["mistral"]
    position_ids, segment_ids, spans = packed([[9], [4]])
    embeds = torch.randn(2, 10, 16)
    step = (torch.randn(2, 1, 16), torch.tensor([[9], [4]]), torch.zeros(2, 1).long())
    results = []
    for documents in (None, spans):
        cache = part.new_cache()
        part(embeds, position_ids, segment_ids, cache, spans=documents)
        results.append(part(*step, cache))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
