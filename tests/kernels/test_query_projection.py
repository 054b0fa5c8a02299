"""The fused query projection: kernels and reference agree with the libraries' own modules.

N images, Q queries, R rows of hidden states, D language width, C context width, P pooled width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from dreamkit.kernels.query_projection import op
from dreamkit.kernels.query_projection.tiles import FUSED_ROWS, is_fused, tile
from projections import EPS, KERNELS, WIDE, Problem, check, error, kernels_run, make_problem, problems
from triton_cpu import AMPERE, HOPPER, SHARED, compiled, recorded


@settings(max_examples=25, deadline=None)
@given(problems())
def test_the_kernels_agree_with_the_modules(problem: Problem) -> None:
    with kernels_run() as launches:
        check(problem)
    assert problem.base.numel() or not launches


@settings(max_examples=10, deadline=None)
@given(problems(dtype=st.just(torch.float32), dim=WIDE))
def test_the_kernels_agree_with_the_modules_in_float32(problem: Problem) -> None:
    with kernels_run():
        check(problem)


@settings(max_examples=40, deadline=None)
@given(problems() | problems(dtype=st.just(torch.float32), dim=WIDE))
def test_the_reference_agrees_with_the_modules(problem: Problem) -> None:
    check(problem)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("drop", [False, True])
def test_dropped_images_share_one_block(images: int, drop: bool) -> None:
    """The unconditional rows have the gradient of all dropped images; the images' own rows have none."""
    problem = make_problem(images, drop=True)._replace(drop=torch.full((images,), drop))
    grads = []
    for context in (nullcontext(), kernels_run()):
        with context:
            (out,) = problem.outputs()
            (grad,) = torch.autograd.grad(out.square().sum(), problem.hidden)
        assert (error(out[:1].expand_as(out), out) < 1e-12) is (drop or images == 1)
        used = set(grad.abs().sum(1).nonzero().flatten().tolist())
        bases = [problem.unconditional] if drop else problem.base
        assert used == {int(base) + query for base in bases for query in range(3)}
        grads.append(grad)
    assert error(*grads) < 1e-12


def test_a_frozen_tensor_costs_no_launch() -> None:
    """The forward pass has one launch, or two if the sum over D is split."""

    def names(problem: Problem, *trained: Tensor) -> list[str]:
        for leaf in problem.leaves():
            leaf.requires_grad_(any(leaf is each for each in trained))
        with kernels_run() as launches:
            out = sum(each.sum() for each in problem.outputs())
            if trained:
                out.backward()
        return [launch.name for launch in launches]

    small, long = make_problem(dim=32), make_problem(dim=32 * 8)
    assert names(small) == ["project"]
    assert names(long) == ["project", "finish"]
    assert names(make_problem(pooled=True)) == ["norm_rows"]
    assert names(make_problem(1, FUSED_ROWS + 1, 1)) == ["norm_rows"]
    assert names(small, small.hidden) == ["project", "scatter_rows"]
    assert names(small, small.norm_weight) == ["project", "sum_norm_weight"]
    assert names(small, small.layers[0][1]) == ["project"]
    assert names(small, small.layers[0][0]) == ["project", "norm_rows"]


def test_a_split_sum_over_the_width_agrees_with_the_modules() -> None:
    for dtype in (torch.float32, torch.float64):
        problem = make_problem(2, 3, 32 * 9 + 5, 33, dtype=dtype, strided=True, drop=True)
        with kernels_run() as launches:
            check(problem)
        assert launches[0].arguments["SPLITS"] > 1 and launches[1].name == "finish"


def test_more_rows_than_one_program_takes_agree_with_the_modules() -> None:
    """Both the product and the sum for the norm's weight, whose parts are uneven, need several programs."""
    problem = make_problem(5, 15, 3, 35, drop=True, twice=True)
    with kernels_run():
        check(problem)


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("shape", [{"pooled": True}, {"drop": True, "offset": 1.0}], ids=str)
def test_gradients_agree_with_finite_differences(shape: dict[str, Any], triton: bool) -> None:
    problem = make_problem(2, 2, 3, 2, second=True, **shape)

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        hidden, norm, w1, b1, w2, b2, *pooled = leaves
        return problem._replace(
            hidden=hidden, norm_weight=norm, layers=[(w1, b1), (w2, b2)], pooled=tuple(pooled) or None
        ).outputs()

    with kernels_run() if triton else nullcontext():
        assert torch.autograd.gradcheck(outputs, problem.leaves(), fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_the_operators_pass_opcheck() -> None:
    problem = make_problem(dtype=torch.float32)
    norm = (problem.hidden, problem.base, 3, problem.norm_weight, EPS, 1.0)
    torch.library.opcheck(op.query_projection, (*norm, *problem.layers[0]))
    torch.library.opcheck(op.query_states, (*norm, torch.float64))
    grad, rstd = torch.randn(2, 3, 5), torch.rand(2, 3)
    tensors = (problem.hidden.detach(), problem.base, problem.norm_weight.detach())
    for needed in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(op.query_states_backward, (grad, *tensors, rstd, 1.0, *needed))


@pytest.mark.parametrize("shape", [{"pooled": True}, {"drop": True, "second": True}], ids=str)
@pytest.mark.parametrize("triton", [True, False])
def test_torch_compile_has_no_graph_break(shape: dict[str, Any], triton: bool) -> None:
    problem = make_problem(**shape)
    torch.compiler.reset()
    with kernels_run() if triton else nullcontext():
        expected = problem.outputs()
        actual = torch.compile(lambda: problem.outputs(), backend="aot_eager", fullgraph=True)()
        for own, other in zip(
            [*actual, *problem.gradients(actual)], [*expected, *problem.gradients(expected)], strict=True
        ):
            assert error(own, other) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_context_has_autocast_s_dtype_and_gradients_have_the_weights_dtype(dtype: torch.dtype) -> None:
    problem = make_problem(second=True, pooled=True, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        actual, expected = problem.outputs(), problem.module_outputs()
    exact = problem.to(torch.float64)
    reference = exact.module_outputs()
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for own, other, true in zip(actual, expected, reference, strict=True):
        assert own.dtype == other.dtype == dtype and error(own, true) < bound
    for own, leaf, true in zip(
        problem.gradients(actual), problem.leaves(), exact.gradients(reference), strict=True
    ):
        assert own.dtype == leaf.dtype and error(own, true) < bound


@pytest.mark.parametrize("norm", ["llama", "gemma"])
def test_rounding_errors_are_no_larger_than_the_libraries(norm: str) -> None:
    problem = make_problem(2, 8, 64, 32, offset=float(norm == "gemma"), dtype=torch.bfloat16)
    exact = problem.to(torch.float64).module_outputs()[0]
    assert error(problem.outputs()[0], exact) <= 1.05 * error(problem.module_outputs()[0], exact)


def test_few_rows_are_fused_and_tiles_fill_a_gpu() -> None:
    half, full = torch.bfloat16, torch.float32
    assert is_fused(256, half, half) and is_fused(256, full, half) and not is_fused(257, half, half)
    for dtypes in ((torch.float16, torch.float16), (full, torch.float64), (torch.float64, torch.float64)):
        assert not is_fused(64, *dtypes)
    for rows in (64, 256):
        for width in (768, 1024, 2048):
            chosen = tile(rows, width, 4096, half)
            programs = -(-rows // chosen.rows) * -(-width // chosen.columns) * chosen.splits
            assert 64 <= programs <= 192


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
def test_the_product_runs_on_tensor_cores_without_spills(capability: int) -> None:
    from dreamkit.kernels.query_projection import projection

    half = torch.bfloat16
    base = meta(4, dtype=torch.long)
    with recorded(*KERNELS) as launches:
        for images, width in [(1, 768), (4, 1024), (1, 2048), (4, 2048)]:
            hidden, norm = meta(2048, 4096, dtype=half), meta(4096, dtype=half)
            weight = meta(width, 4096, dtype=half)
            projection.query_projection(hidden, base[:images], 64, norm, EPS, 0.0, weight, None)
        projection.query_projection(
            hidden.float(), base, 64, norm.float(), EPS, 0.0, weight, meta(2048, dtype=half)
        )
        full = [each.float() for each in (hidden, norm, weight)]
        projection.query_projection(full[0], base, 64, full[1], EPS, 0.0, full[2], None)
    for launch in launches:
        code = compiled(launch, capability)
        assert code.spills == 0 and code.shared <= SHARED, launch
        is_half = launch.name == "project" and launch.arguments["weight"].dtype == half
        assert (code.tensor_core > 0) is is_half, launch


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_and_its_gradients_do_not_spill(capability: int, dtype: torch.dtype) -> None:
    from dreamkit.kernels.query_projection import norm

    base = meta(256, dtype=torch.long)
    with recorded(*KERNELS) as launches:
        for dim in (4096, 8192):
            hidden, weight = meta(2048, dim, dtype=dtype), meta(dim, dtype=dtype)
            grad, rstd = meta(256, 64, dim, dtype=dtype), meta(256, 64, dtype=torch.float32)
            norm.query_states(hidden, base, 64, weight, EPS, 0.0, dtype)
            norm.hidden_gradient(grad, hidden, base, weight, rstd, 0.0)
            norm.norm_weight_gradient(grad, hidden, base, weight, rstd)
    assert [launch.name for launch in launches] == ["norm_rows", "scatter_rows", "sum_norm_weight"] * 2
    assert [compiled(launch, capability).spills for launch in launches] == [0] * 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("images", [1, 4, 40])
@pytest.mark.parametrize("pooled", [False, True])
def test_on_a_gpu_runs_are_identical_and_close_to_float64(
    dtype: torch.dtype, images: int, pooled: bool
) -> None:
    problem = make_problem(
        images, 64, 1000, 260, dtype=dtype, device="cuda", second=True, drop=True, twice=True, pooled=pooled
    )
    exact = problem.to(torch.float64)
    actual, again, expected = problem.outputs(), problem.outputs(), exact.module_outputs()
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    first, second = [*actual, *problem.gradients(actual)], [*again, *problem.gradients(again)]
    for own, other, true in zip(first, second, [*expected, *exact.gradients(expected)], strict=True):
        assert torch.equal(own, other), "runs differ"
        assert error(own, true) < bound
