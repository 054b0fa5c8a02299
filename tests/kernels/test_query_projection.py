"""The fused query projection: kernels, reference and what the libraries' own modules compute agree.

N images, Q queries, R rows of hidden states, D language width, C context width, P pooled width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamkit.kernels.query_projection import op
from dreamkit.kernels.query_projection.row_blocks import Blocks
from dreamkit.kernels.query_projection.tiles import FUSED_ROWS, is_fused, tile
from projections import EPS, KERNELS, WIDE, Case, case, cases, check, error, kernels_run
from triton_cpu import AMPERE, HOPPER, SHARED, compiled, recorded


@settings(max_examples=25, deadline=None)
@given(cases())
def test_the_kernels_are_what_the_modules_compute(given: Case) -> None:
    with kernels_run() as launches:
        check(given)
    assert given.base.numel() or not launches


@settings(max_examples=10, deadline=None)
@given(cases(dtype=st.just(torch.float32), dim=WIDE))
def test_the_kernels_in_float32(given: Case) -> None:
    with kernels_run():
        check(given)


@settings(max_examples=40, deadline=None)
@given(cases() | cases(dtype=st.just(torch.float32), dim=WIDE))
def test_the_reference_is_what_the_modules_compute(given: Case) -> None:
    check(given)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("drop", [False, True])
def test_dropped_images_share_one_block(images: int, drop: bool) -> None:
    """The unconditional rows take the gradients of all of them, and the rows of dropped images none."""
    given = case(images, drop=True)._replace(drop=torch.full((images,), drop))
    found = []
    for context in (nullcontext(), kernels_run()):
        with context:
            (out,) = given.computed()
            (grad,) = torch.autograd.grad(out.square().sum(), given.hidden)
        assert (error(out[:1].expand_as(out), out) < 1e-12) is (drop or images == 1)
        used = set(grad.abs().sum(1).nonzero().flatten().tolist())
        bases = [given.unconditional] if drop else given.base
        assert used == {int(base) + query for base in bases for query in range(3)}
        found.append(grad)
    assert error(*found) < 1e-12


def test_launches() -> None:
    """One, or two where the sum over D is split; backward adds what is learned and nothing else."""

    def names(given: Case, *learned: Tensor) -> list[str]:
        for leaf in given.leaves():
            leaf.requires_grad_(any(leaf is each for each in learned))
        with kernels_run() as launches:
            out = sum(each.sum() for each in given.computed())
            if learned:
                out.backward()
        return [launch.name for launch in launches]

    small, long = case(dim=32), case(dim=32 * 8)
    assert names(small) == ["project"]
    assert names(long) == ["project", "finish"]
    assert names(case(pooled=True)) == ["norm_rows"]
    assert names(case(1, FUSED_ROWS + 1, 1)) == ["norm_rows"]
    assert names(small, small.hidden) == ["project", "scatter_rows"]
    assert names(small, small.norm_weight) == ["project", "sum_norm_weight"]
    assert names(small, small.layers[0][1]) == ["project"]
    assert names(small, small.layers[0][0]) == ["project", "norm_rows"]


def test_the_sum_over_the_width_is_split() -> None:
    for dtype in (torch.float32, torch.float64):
        given = case(2, 3, 32 * 9 + 5, 33, dtype=dtype, strided=True, drop=True)
        with kernels_run() as launches:
            check(given)
        assert launches[0].arguments["SPLITS"] > 1 and launches[1].name == "finish"


def test_more_rows_than_a_program_takes() -> None:
    """Of the product, and of the sum for the norm's weight, whose parts are uneven."""
    given = case(5, 15, 3, 35, drop=True, twice=True)
    with kernels_run():
        check(given)


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("shape", [{"pooled": True}, {"drop": True, "offset": 1.0}], ids=str)
def test_gradients_are_those_of_small_differences(shape: dict[str, Any], triton: bool) -> None:
    given = case(2, 2, 3, 2, second=True, **shape)

    def computed(*leaves: Tensor) -> tuple[Tensor, ...]:
        hidden, norm, w1, b1, w2, b2, *pooled = leaves
        return given._replace(
            hidden=hidden, norm_weight=norm, layers=[(w1, b1), (w2, b2)], pooled=tuple(pooled) or None
        ).computed()

    with kernels_run() if triton else nullcontext():
        assert torch.autograd.gradcheck(computed, given.leaves(), fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("drop", [True, False])
def test_the_operators_are_registered_soundly(drop: bool) -> None:
    given = case(drop=drop, dtype=torch.float32)
    norm = (given.hidden, given.base, given.drop, given.unconditional, 3, given.norm_weight, EPS, 1.0)
    torch.library.opcheck(op.query_projection, (*norm, *given.layers[0]))
    torch.library.opcheck(op.query_states, (*norm, torch.float64))
    grad, rstd = torch.randn(2, 3, 5), torch.rand(2, 3)
    tensors = [each if each is None else each.detach() for each in norm[:4]]
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            op.query_states_backward, (grad, *tensors, given.norm_weight.detach(), rstd, 1.0, *wanted)
        )


@pytest.mark.parametrize("shape", [{"pooled": True}, {"drop": True, "second": True}], ids=str)
@pytest.mark.parametrize("triton", [True, False])
def test_compiled_without_a_break(shape: dict[str, Any], triton: bool) -> None:
    given = case(**shape)
    torch.compiler.reset()
    with kernels_run() if triton else nullcontext():
        wanted = given.computed()
        found = torch.compile(lambda: given.computed(), backend="aot_eager", fullgraph=True)()
        for own, other in zip(
            [*found, *given.gradients(found)], [*wanted, *given.gradients(wanted)], strict=True
        ):
            assert error(own, other) < 1e-12


def test_operations_are_counted() -> None:
    given = case(2, 3, 5, 4)
    wanted = 2 * (2 * 3) * 5 * 4
    for context in (nullcontext(), kernels_run()):
        with context, FlopCounterMode(display=False) as counter:
            (out,) = given.computed()
            assert counter.get_total_flops() == wanted
            out.sum().backward()
        assert counter.get_total_flops() == 3 * wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast(dtype: torch.dtype) -> None:
    """Weights learn in their own dtype; the context has autocast's."""
    given = case(second=True, pooled=True, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, wanted = given.computed(), given.by_modules()
    exact = given.to(torch.float64)
    reference = exact.by_modules()
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for own, other, true in zip(found, wanted, reference, strict=True):
        assert own.dtype == other.dtype == dtype and error(own, true) < bound
    for own, leaf, true in zip(
        given.gradients(found), given.leaves(), exact.gradients(reference), strict=True
    ):
        assert own.dtype == leaf.dtype and error(own, true) < bound


@pytest.mark.parametrize("norm", ["llama", "gemma"])
def test_rounding_is_no_worse_than_the_libraries(norm: str) -> None:
    given = case(2, 8, 64, 32, offset=float(norm == "gemma"), dtype=torch.bfloat16)
    exact = given.to(torch.float64).by_modules()[0]
    assert error(given.computed()[0], exact) <= 1.05 * error(given.by_modules()[0], exact)


def test_which_path_is_taken() -> None:
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
    long, flag = meta(4, dtype=torch.long), meta(4, dtype=torch.bool)
    with recorded(*KERNELS) as launches:
        for images, width, dropped in [(1, 768, True), (4, 1024, True), (1, 2048, True), (4, 2048, False)]:
            drop = (flag[:images], meta(dtype=torch.long)) if dropped else (None, None)
            blocks = Blocks(long[:images], *drop)
            hidden, norm = meta(2048, 4096, dtype=half), meta(4096, dtype=half)
            weight = meta(width, 4096, dtype=half)
            projection.query_projection(hidden, blocks, 64, norm, EPS, 0.0, weight, None)
        blocks = Blocks(long)
        projection.query_projection(
            hidden.float(), blocks, 64, norm.float(), EPS, 0.0, weight, meta(2048, dtype=half)
        )
        full = [each.float() for each in (hidden, norm, weight)]
        projection.query_projection(full[0], blocks, 64, full[1], EPS, 0.0, full[2], None)
    for launch in launches:
        made = compiled(launch, capability)
        assert made.spills == 0 and made.shared <= SHARED, launch
        is_half = launch.name == "project" and launch.arguments["weight"].dtype == half
        assert (made.tensor_core > 0) is is_half, launch


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_and_its_gradients_do_not_spill(capability: int, dtype: torch.dtype) -> None:
    from dreamkit.kernels.query_projection import norm

    blocks = Blocks(meta(256, dtype=torch.long), meta(256, dtype=torch.bool), meta(dtype=torch.long))
    with recorded(*KERNELS) as launches:
        for dim in (4096, 8192):
            hidden, weight = meta(2048, dim, dtype=dtype), meta(dim, dtype=dtype)
            grad, rstd = meta(256, 64, dim, dtype=dtype), meta(256, 64, dtype=torch.float32)
            norm.query_states(hidden, blocks, 64, weight, EPS, 0.0, dtype)
            norm.hidden_gradient(grad, hidden, blocks, weight, rstd, 0.0)
            norm.norm_weight_gradient(grad, hidden, blocks, weight, rstd)
    assert [launch.name for launch in launches] == ["norm_rows", "scatter_rows", "sum_norm_weight"] * 2
    assert [compiled(launch, capability).spills for launch in launches] == [0] * 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("images", [1, 4, 40])
@pytest.mark.parametrize("pooled", [False, True])
def test_on_a_gpu(dtype: torch.dtype, images: int, pooled: bool) -> None:
    given = case(
        images, 64, 1000, 260, dtype=dtype, device="cuda", second=True, drop=True, twice=True, pooled=pooled
    )
    exact = given.to(torch.float64)
    found, again, wanted = given.computed(), given.computed(), exact.by_modules()
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    all_found, all_again = [*found, *given.gradients(found)], [*again, *given.gradients(again)]
    for own, other, true in zip(all_found, all_again, [*wanted, *exact.gradients(wanted)], strict=True):
        assert torch.equal(own, other), "runs differ"
        assert error(own, true) < bound
