"""Double precision of whole models, whose parts convert to float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dreamkit.parts.precision import full_float64


def layer(values: Tensor) -> Tensor:
    """Compute as parts do that sum in float32."""
    positions = torch.arange(len(values)).float()
    normed = values.to(torch.float32) / values.float().square().mean().sqrt()
    weights = F.softmax(normed + positions, dim=0, dtype=torch.float32)
    return (weights * torch.ones(len(values)) * values).sum()


def test_code_that_names_float32_computes_in_float64() -> None:
    values = torch.rand(5, dtype=torch.float64)
    normed = values / values.square().mean().sqrt()
    expected = ((normed + torch.arange(5).double()).softmax(0) * values).sum()
    with full_float64(True):
        actual = layer(values)
    torch.testing.assert_close(actual, expected, rtol=1e-15, atol=0)
    assert layer(values) != expected


def test_layers_are_recomputed_in_float64() -> None:
    gradients = []
    for recompute in (False, True):
        values = torch.linspace(0, 1, 5, dtype=torch.float64, requires_grad=True)
        with full_float64(True):
            output = checkpoint(layer, values, use_reentrant=False) if recompute else layer(values)
            output.backward()
        assert values.grad is not None
        gradients.append(values.grad)
    assert torch.equal(*gradients)


def test_the_mode_ends_with_its_context() -> None:
    with pytest.raises(KeyError), full_float64(True):
        assert torch.zeros(1).dtype == torch.zeros(1).float().dtype == torch.float64
        raise KeyError
    with full_float64(False):
        assert torch.zeros(1).dtype == torch.zeros(1).double().float().dtype == torch.float32
