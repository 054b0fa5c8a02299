"""Tests of `tests/helpers/triton_cpu.py`, which runs and compiles kernels without a GPU."""

import pytest
import torch
import triton
import triton.language as tl

from triton_cpu import AMPERE, HOPPER, compiled, interpreted, recorded


@triton.jit
def doubled(x):
    return x + tl.zeros_like(x) + x


@triton.jit
def product_kernel(a, b, out, n, BLOCK: tl.constexpr, PARTS: tl.constexpr = 1):
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (row < n) & (column < n)
    at = row * n + column
    product = tl.dot(
        doubled(tl.load(a + at, mask=inside, other=0.0)),
        tl.load(b + at, mask=inside, other=0.0),
        input_precision="ieee",
    )
    total = tl.sum(product, axis=1)[:, None]
    tl.store(out + at, product + total, mask=inside)


def product(a, b, block=16, **options):
    out = torch.empty_like(a)
    product_kernel[(1,)](a, b, out, a.shape[0], BLOCK=block, **options)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kernel_and_its_helpers_are_interpreted(dtype):
    kernel, total = product_kernel, vars(tl)["sum"]
    a, b = torch.randn(2, 5, 5, dtype=dtype)
    with interpreted(__name__) as launches:
        out = product(a, b, num_warps=2)
    expected = 2 * a @ b
    torch.testing.assert_close(out, expected + expected.sum(1, keepdim=True))
    assert [(launch.name, launch.grid) for launch in launches] == [("product_kernel", (1,))]
    assert launches[0].arguments["num_warps"] == 2 and launches[0].arguments["PARTS"] == 1
    assert product_kernel is kernel and vars(tl)["sum"] is total and not triton.knobs.runtime.interpret


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
def test_a_launch_is_compiled_ahead_of_time(capability):
    a = torch.empty(64, 64, device="meta", dtype=torch.bfloat16)
    with recorded(__name__) as launches:
        product(a, a, block=64, num_warps=4)
        product(a.float(), a.float(), block=32, num_warps=1, maxnreg=32)
    on_tensor_cores, spilling = (compiled(launch, capability) for launch in launches)
    assert on_tensor_cores.tensor_core > 0 and on_tensor_cores.spills == 0
    assert spilling.tensor_core == 0 and spilling.spills > 0
