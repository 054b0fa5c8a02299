"""Quantized linear layers: their weights against published tables, their gradients, and their state."""

from __future__ import annotations

import copy
import math
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from dreamkit.parts import quantized
from dreamkit.parts.quantized import QuantizedLinear

KINDS = ("nf4", "int8")
# appendix E of arXiv 2305.14314
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
SHAPES = [(1, 1), (3, 5), (7, 64), (64, 65), (33, 100), (32, 32), (40, 48), (96, 2), (5, 30), (3, 66)]
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def weights(shape: tuple[int, int], seed: int = 0, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(shape: tuple[int, int], seed: int = 0, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
    layer.weight.copy_(weights(shape, seed))
    return layer


def expected_weights(weight: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """Compute restored weights with numpy, in float64."""
    values = weight.double().numpy()
    if kind == "int8":
        largest = np.abs(values).max(1, keepdims=True)
        return np.round(values / largest * 127) / 127 * largest
    flat = np.pad(values.ravel(), (0, -values.size % 64)).reshape(-1, 64)
    largest = np.abs(flat).max(1, keepdims=True)
    codes = np.abs(flat[..., None] / largest[..., None] - np.array(NF4)).argmin(-1)
    return (np.array(NF4)[codes] * largest).ravel()[: values.size].reshape(values.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_published_formulas(kind: str, shape: tuple[int, int]) -> None:
    weight = weights(shape)
    actual = QuantizedLinear(weight, None, kind).weight
    torch.testing.assert_close(actual.double(), torch.tensor(expected_weights(weight, kind)))


def test_nf4_is_that_of_the_modules_of_bitsandbytes() -> None:
    # of a width that is a multiple of a block's: on a CPU, those of other widths take wrong scales
    layer, input = linear((48, 128)), torch.randn(5, 128)
    theirs = bitsandbytes.nn.Linear4bit(128, 48, compress_statistics=False, quant_type="nf4")
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(QuantizedLinear.of(layer, "nf4")(input), theirs.to("cpu")(input))


@settings(max_examples=15, deadline=None)
@given(shapes, st.integers(0, 2**16), st.floats(-30, 4), st.sampled_from(KINDS))
def test_restored_weights_are_packed_to_the_same_bits(
    shape: tuple[int, int], seed: int, exponent: float, kind: str
) -> None:
    once = QuantizedLinear(weights(shape, seed, 10**exponent), None, kind)
    twice = QuantizedLinear(once.weight, None, kind)
    assert torch.equal(once.packed, twice.packed) and torch.equal(once.scales, twice.scales)
    assert torch.equal(once.weight, twice.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_stay_zeros(kind: str) -> None:
    assert torch.equal(QuantizedLinear(torch.zeros(3, 70), None, kind).weight, torch.zeros(3, 70))


def test_large_weights_are_packed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights((50, 70))
    whole = QuantizedLinear(weight, None, "nf4")
    monkeypatch.setattr(quantized, "_CHUNK", 128)
    chunked = QuantizedLinear(weight, None, "nf4")
    assert torch.equal(whole.packed, chunked.packed) and torch.equal(whole.scales, chunked.scales)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradient_are_those_of_the_restored_weights(
    kind: str, dtype: torch.dtype, bias: bool
) -> None:
    plain = linear((12, 40), bias=bias)
    layer = QuantizedLinear.of(plain, kind)
    plain.weight.data = layer.weight
    input = torch.randn(2, 3, 40, dtype=dtype, requires_grad=True)
    other = input.detach().clone().requires_grad_()
    layer(input).square().sum().backward()
    plain.to(dtype)(other).square().sum().backward()
    torch.testing.assert_close(layer(input), plain(other))
    torch.testing.assert_close(input.grad, other.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_its_type(kind: str) -> None:
    layer, input = QuantizedLinear.of(linear((12, 40)), kind), torch.randn(3, 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(input)
    assert output.dtype == torch.bfloat16 and input.dtype == torch.float32
    torch.testing.assert_close(output, layer(input).bfloat16(), rtol=0.02, atol=0.01)
    output.sum().backward()
    assert input.grad is not None and input.grad.dtype == torch.float32
    torch.testing.assert_close(input.grad, layer.weight.sum(0).expand(3, 40), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_no_restored_weights_are_kept_for_the_backward_pass(kind: str) -> None:
    kept: list[int] = []
    layer, input = QuantizedLinear.of(linear((64, 64)), kind), torch.randn(1, 64, requires_grad=True)

    def record(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        layer(input).sum().backward()
    assert max(kept, default=0) < 64 * 64


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_and_casts_leave_the_packed_weights(kind: str) -> None:
    layer = QuantizedLinear.of(linear((12, 40)), kind)
    before, packed = layer.weight, layer.packed.clone()
    assert layer.state_dict().keys() == {"bias"} and dict(layer.named_parameters()).keys() == {"bias"}
    copied = copy.deepcopy(layer).double()
    assert torch.equal(copied.packed, packed) and copied.weight.dtype == torch.float64
    torch.testing.assert_close(copied.float().weight, before, rtol=0, atol=0)
    layer.load(weights((12, 40), seed=3).bfloat16())
    assert torch.equal(layer.weight, QuantizedLinear(weights((12, 40), seed=3).bfloat16(), None, kind).weight)


@pytest.mark.parametrize(
    ("kind", "size"), [("nf4", lambda n: n // 2 + 4 * math.ceil(n / 64)), ("int8", None)]
)
def test_bytes_of_a_layer(kind: str, size: Any) -> None:
    layer = QuantizedLinear(weights((33, 100)), None, kind)
    expected = size(3300) if size else 3300 + 4 * 33
    assert sum(buffer.nbytes for buffer in layer.buffers()) == expected
    meta = QuantizedLinear(torch.empty(33, 100, device="meta"), None, kind)
    assert sum(buffer.nbytes for buffer in meta.buffers()) == expected
