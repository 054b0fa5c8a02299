"""The projectors of linear layers alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import tiny
from dreamkit.errors import ConfigError
from dreamkit.parts.projectors import MLP, Linear

widths = st.integers(1, 9)


def by_hand(layers: list[torch.nn.Linear], tokens: Tensor) -> Tensor:
    """Compute the published projectors: linear layers with GELU between them, and none after the last."""
    for number, layer in enumerate(layers):
        tokens = F.gelu(tokens) if number else tokens
        tokens = tokens @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    return tokens


@given(widths, widths, st.integers(1, 4), st.booleans(), st.integers(1, 4), st.none() | widths)
@settings(max_examples=50, deadline=None)
def test_shapes_and_values(
    in_dim: int, out_dim: int, tokens: int, bias: bool, depth: int, hidden_dim: int | None
) -> None:
    torch.manual_seed(0)
    options = {"depth": depth, "hidden_dim": hidden_dim, "bias": bias}
    for projector in (
        tiny.projector(Linear, in_dim, tokens, out_dim, bias=bias),
        tiny.projector(MLP, in_dim, tokens, out_dim, **options),
    ):
        spec = projector.spec
        assert (spec.in_dim, spec.out_dim, spec.in_tokens, spec.out_tokens) == (
            in_dim,
            out_dim,
            tokens,
            tokens,
        )
        layers = list(projector.dense_layers())
        for layer in layers:
            if layer.bias is not None:
                torch.nn.init.normal_(layer.bias)
        x = torch.randn(2, tokens, in_dim, dtype=torch.float64)
        assert projector(x).shape == (2, tokens, out_dim)
        torch.testing.assert_close(projector(x), by_hand(layers, x))
        assert all((layer.bias is not None) == bias for layer in layers)


def test_an_mlp_of_depth_1_is_linear() -> None:
    linear, mlp = tiny.projector(Linear, 3, 2, 5), tiny.projector(MLP, 3, 2, 5, depth=1)
    mlp.load_state_dict({name.replace("layer.", "layers.0."): t for name, t in linear.state_dict().items()})
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    assert torch.equal(linear(x), mlp(x))


def test_the_widths_between_the_layers_of_an_mlp() -> None:
    assert [tuple(layer.weight.shape) for layer in tiny.projector(MLP, 3, 1, 5, depth=3).dense_layers()] == [
        (5, 3),
        (5, 5),
        (5, 5),
    ]
    narrow = tiny.projector(MLP, 3, 1, 5, depth=3, hidden_dim=2)
    assert [tuple(layer.weight.shape) for layer in narrow.dense_layers()] == [(2, 3), (2, 2), (5, 2)]


@pytest.mark.parametrize("cls", [Linear, MLP])
def test_initial_weights(cls: type) -> None:
    torch.manual_seed(0)
    for layer in tiny.projector(cls, 200, 1, 300).dense_layers():
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert abs(layer.weight.mean().item()) < 1e-3
        assert layer.bias.abs().max() == 0


def test_all_invalid_settings_of_an_mlp_are_errors_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MLP.Config(depth=0, hidden_dim=0)
    assert caught.value.problems == dict.fromkeys(("depth", "hidden_dim"), "expected at least 1, got 0")
