"""The encoder equals transformers' layers and the published formula; its output has the expected scale."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

import tiny
from dreamkit.parts.projectors import Encoder

WIDTH, HEADS = 24, 3
NAMES = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feed_norm",
}


def tail(part: Encoder, hidden: Tensor) -> Tensor:
    """Compute the two linear layers and the norm by hand."""
    first, _, last = part.out_layers
    hidden = F.gelu(hidden @ first.weight.T + first.bias, approximate="tanh") @ last.weight.T + last.bias
    return hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt() * part.norm.weight


def build_encoder(**options: object) -> Encoder:
    torch.manual_seed(0)
    return tiny.perturb(tiny.projector(Encoder, **{"in_dim": WIDTH, "depth": 2, "heads": HEADS, **options}))


def test_layers_equal_those_of_qwen3() -> None:
    """Qwen3's layers are Qwen2's with norms of queries and keys; here they have no mask.

    Those norms come before the rotation and have one weight for all heads. The result is the same if both halves of a
    rotated pair have the same weight.
    """
    part = build_encoder()
    config = Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        attention_bias=True,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="eager",
    )
    tokens = torch.randn(3, 6, WIDTH, dtype=torch.float64)
    hidden = tokens
    rotations = Qwen3RotaryEmbedding(config)(tokens, torch.arange(6)[None])
    for number, layer in enumerate(part.layers):
        library = Qwen3DecoderLayer(config, number).double()
        state = library.state_dict()
        for name in state:
            module, _, kind = name.rpartition(".")
            if module in NAMES and name != "self_attn.o_proj.bias":
                state[name] = getattr(layer.get_submodule(NAMES[module]), kind)
        state["self_attn.o_proj.bias"] = torch.zeros(WIDTH)
        for ours, theirs in ((layer.query_norm, "q_norm"), (layer.key_norm, "k_norm")):
            pairs = (1 + 0.3 * torch.randn(WIDTH // HEADS // 2, dtype=torch.float64)).repeat(2)
            ours.weight.data[:] = pairs
            state[f"self_attn.{theirs}.weight"] = pairs
        library.load_state_dict(state)
        hidden = library(hidden, position_embeddings=rotations, attention_mask=None)
    torch.testing.assert_close(
        part(tokens),
        tail(part, hidden),
        rtol=1e-4,  # the library's norms are float32
        atol=1e-4,
    )


def rotate(heads: Tensor) -> Tensor:
    """Apply rotary positions as complex numbers."""
    half = heads.shape[-1] // 2
    speed = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(heads.shape[-2], dtype=torch.float64)[:, None] * speed
    rotated = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def by_hand(layer: nn.Module, tokens: Tensor) -> Tensor:
    def norm(part: nn.Module, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * part.weight

    def heads(part: nn.Linear, x: Tensor) -> Tensor:
        return (x @ part.weight.T + part.bias).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)

    def unit(part: nn.Module, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * part.weight

    normed = norm(layer.attention_norm, tokens)
    query = unit(layer.query_norm, rotate(heads(layer.query, normed)))
    key = unit(layer.key_norm, rotate(heads(layer.key, normed)))
    weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
    mixed = (weights @ heads(layer.value, normed)).transpose(1, 2).reshape(tokens.shape)
    tokens = tokens + mixed @ layer.out.weight.T
    normed = norm(layer.feed_norm, tokens)
    return (
        tokens + (F.silu(normed @ layer.gate.weight.T) * (normed @ layer.up.weight.T)) @ layer.down.weight.T
    )


@pytest.mark.parametrize("width", [None, 30])
def test_the_encoder_equals_the_published_formula(width: int | None) -> None:
    part = build_encoder(width=width, out_rms=2.5)
    tokens = torch.randn(3, 6, WIDTH, dtype=torch.float64)
    hidden = tokens if width is None else tokens @ part.in_layer.weight.T + part.in_layer.bias
    for layer in part.layers:
        hidden = by_hand(layer, hidden)
    torch.testing.assert_close(part(tokens), tail(part, hidden))


@given(
    st.floats(-3, 3),
    st.floats(0.01, 30),
    st.integers(0, 99),
    st.sampled_from([(24, 32), (16, 5), (64, 128)]),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_new_encoder_has_the_expected_output_scale_at_any_input_scale(
    exponent: float, out_rms: float, seed: int, widths: tuple[int, int], double: bool
) -> None:
    torch.manual_seed(seed)
    in_dim, out_dim = widths
    part = tiny.projector(Encoder, in_dim=in_dim, out_dim=out_dim, out_rms=out_rms, depth=2)
    tokens = 10**exponent * torch.randn(2, 6, in_dim, dtype=torch.float64)
    if not double:
        part, tokens = part.float(), tokens.float()
    rms = part(tokens).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, out_rms), rtol=0.01, atol=0)


def test_out_rms_may_be_an_integer() -> None:
    assert tiny.projector(Encoder, out_rms=2, depth=1).norm.weight.eq(2).all()


def test_every_token_attends_to_all_and_depends_on_its_position() -> None:
    part = build_encoder()
    tokens = torch.randn(1, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    for position in (0, 5):
        (gradient,) = torch.autograd.grad(part(tokens)[0, position].square().sum(), tokens)
        assert (gradient.abs().sum(-1) > 1e-6).all()
    assert not torch.allclose(part(tokens.flip(1)).flip(1), part(tokens), rtol=1e-3)


def test_the_default_sizes_are_metaquerys() -> None:
    """24 layers as wide as the language model, heads of 64, feed-forward networks of four times the width."""
    with torch.device("meta"):
        part = tiny.projector(Encoder, in_dim=896, out_dim=2304)
    assert len(part.layers) == 24 and part.in_layer is None
    layer = part.layers[0]
    assert layer.heads == 14 and layer.gate.weight.shape == (4 * 896, 896)
    assert [name for name, _ in layer.named_parameters() if name.endswith("bias")] == [
        f"{name}.bias" for name in ("query", "key", "value")
    ]


def test_initial_weights_are_as_published() -> None:
    torch.manual_seed(0)
    part = tiny.projector(Encoder, in_dim=128, out_dim=128, depth=1)
    assert part.layers[0].down.weight.std().item() == pytest.approx(0.014, rel=0.02)
    assert part.layers[0].query.bias.abs().max() == 0
    assert part.out_layers[0].weight.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)
