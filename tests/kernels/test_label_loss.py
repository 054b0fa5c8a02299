"""The chunked loss against the loss of all logits at once: values, gradients, and memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dreamkit.kernels.label_loss import label_loss
from dreamkit.kernels.label_loss.reference import label_loss_reference
from dreamkit.plan.live_bytes import LiveBytes
from zero_fills import ZeroFills


class Head(nn.Module):
    """A head with a bias, a scale, a soft cap, and added tokens, one of which replaces the first token."""

    def __init__(
        self, dim: int, words: int, added: int, cap: float | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.original = nn.Linear(dim, words)
        self.added = nn.Parameter(torch.randn(added, dim))
        self.cap, self.scale = cap, scale

    def forward(self, rows: Tensor) -> Tensor:
        original, added = self.original(rows), F.linear(rows, self.added)
        original = original.index_copy(-1, torch.zeros(min(1, added.shape[-1])).long(), added[..., :1])
        logits = self.scale * torch.cat([original, added[..., 1:]], dim=-1)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def gradients(
    loss: Callable[..., Any], head: nn.Module, rows: Tensor, ids: Tensor, weights: Tensor, **options: Any
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return the sum and the losses of rows, and the gradients of the rows and of every parameter."""
    leaves = [rows.detach().requires_grad_(rows.requires_grad), *head.parameters()]
    total, by_row = loss(head, leaves[0], ids, weights, **options)
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(torch.autograd.grad(1.7 * total, trained, allow_unused=True) if trained else ())
    return [total, by_row], [next(grads) if leaf.requires_grad else None for leaf in leaves]


@given(
    count=st.integers(0, 9),
    sizes=st.tuples(st.integers(1, 7), st.integers(2, 9), st.integers(0, 3)),
    cap=st.sampled_from([None, 0.7, 30.0]),
    scale=st.sampled_from([1.0, 0.3]),
    trained=st.sets(st.sampled_from(["rows", "original.weight", "original.bias", "added"])),
    budget=st.sampled_from([1, 300, 700, 10**6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_the_chunked_loss_equals_the_whole_and_repeats_bitwise(
    count: int,
    sizes: tuple[int, int, int],
    cap: float | None,
    scale: float,
    trained: set[str],
    budget: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    head = Head(*sizes, cap=cap, scale=scale).to(dtype)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name in trained)
    rows = torch.randn(count, sizes[0], dtype=dtype).requires_grad_("rows" in trained)
    ids = torch.randint(sizes[1] + max(sizes[2] - 1, 0), (count,))
    weights = torch.rand(count) * (torch.rand(count) < 0.8)
    actual = gradients(label_loss, head, rows, ids, weights, budget=budget)
    expected = gradients(label_loss_reference, head, rows, ids, weights)
    again = gradients(label_loss, head, rows, ids, weights, budget=budget)
    for chunked, whole, repeated in zip(actual, expected, again, strict=True):
        torch.testing.assert_close(chunked, whole)
        assert all(a is b or torch.equal(a, b) for a, b in zip(chunked, repeated, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [1, 10**6])
def test_gradients_agree_with_finite_differences(budget: int) -> None:
    torch.manual_seed(0)
    head = Head(3, 4, 2, cap=2.0).double()
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.tensor([0, 4, 3, 1, 1]), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])

    def total(rows: Tensor, *_: Tensor) -> Tensor:
        return label_loss(head, rows, ids, weights, budget=budget).total

    assert torch.autograd.gradcheck(total, (rows, *head.parameters()), fast_mode=True)


def test_autocast_computes_logits_in_bfloat16_and_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    head, rows = Head(8, 40, 3, cap=5.0), torch.randn(30, 8, requires_grad=True)
    ids, weights = torch.randint(42, (30,)), torch.ones(30)
    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(label_loss, head, rows, ids, weights, budget=1)
        expected = gradients(label_loss_reference, head, rows, ids, weights)
    torch.testing.assert_close(actual[0], expected[0])
    assert actual[0][1].dtype == torch.float32
    exact = gradients(label_loss_reference, head.double(), rows.double(), ids, weights)
    for chunked, whole, true in zip(actual[1], expected[1], exact[1], strict=True):
        assert chunked is not None and whole is not None and true is not None
        assert chunked.dtype == whole.dtype == torch.float32
        # about as close to the exact gradient as the whole loss is
        assert (chunked - true).norm() <= 1.2 * (whole - true).norm() + 1e-6


def test_a_head_that_disables_autocast_has_a_float32_gradient() -> None:
    torch.manual_seed(0)
    plain, rows = nn.Linear(8, 20), torch.randn(6, 8, requires_grad=True)
    ids, weights = torch.randint(20, (6,)), torch.ones(6)

    class Float32Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, rows: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return plain(rows.float())

    with torch.autocast("cpu", torch.bfloat16):
        actual = gradients(label_loss, Float32Head(), rows, ids, weights)
    torch.testing.assert_close(actual[1], gradients(label_loss_reference, plain, rows, ids, weights)[1])


def test_the_backward_pass_may_run_twice_accumulate_or_be_left_out() -> None:
    torch.manual_seed(0)
    head, rows = Head(4, 6, 1), torch.randn(5, 4, requires_grad=True)
    args = (head, rows, torch.randint(6, (5,)), torch.ones(5))
    total, by_row = label_loss(*args, budget=1)
    assert not by_row.requires_grad
    (once,) = torch.autograd.grad(total, rows, retain_graph=True)
    (twice,) = torch.autograd.grad(total, rows)
    assert torch.equal(once, twice)
    for _ in range(2):
        label_loss(*args, budget=1).total.backward()
    torch.testing.assert_close(rows.grad, 2 * once)
    with torch.no_grad():
        loss = label_loss(*args)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, total.detach())
    head.requires_grad_(False)
    assert not label_loss(head, rows.detach(), *args[2:]).total.requires_grad


def test_a_matrix_shared_by_embedding_and_head_has_one_gradient() -> None:
    torch.manual_seed(0)
    table, ids = torch.randn(9, 4, requires_grad=True), torch.tensor([3, 8, 1])
    rows = F.embedding(ids, table)
    (actual,) = torch.autograd.grad(
        label_loss(lambda rows: F.linear(rows, table), rows, ids, torch.ones(3)).total, table
    )
    whole = F.cross_entropy(F.linear(F.embedding(ids, table), table), ids, reduction="sum")
    torch.testing.assert_close(actual, torch.autograd.grad(whole, table)[0])


@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_gradient_passes_through_a_matrix_that_was_computed_before(budget: int) -> None:
    """Another loss uses the same matrix afterwards."""
    torch.manual_seed(0)
    leaf, rows = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    ids, weights = torch.tensor([3, 8, 1, 1, 0]), torch.rand(5)

    def grads_of(loss: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
        matrix = F.normalize(leaf.tanh(), dim=-1)
        total = loss(lambda some: F.linear(some, matrix), rows, ids, weights, **options)[0]
        return torch.autograd.grad(total + matrix[0].sum(), [rows, leaf])

    torch.testing.assert_close(grads_of(label_loss, budget=budget), grads_of(label_loss_reference))


@pytest.mark.parametrize("budget", [1, 10**6])
def test_leaves_whose_gradients_are_one_tensor_are_summed_apart(budget: int) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(9, 4, requires_grad=True) for _ in range(2)]
    rows, ids, weights = torch.randn(5, 4), torch.tensor([3, 8, 1, 1, 0]), torch.rand(5)

    def grads_of(loss: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
        total = loss(lambda some: F.linear(some, leaves[0] + leaves[1]), rows, ids, weights, **options)[0]
        return torch.autograd.grad(total, leaves)

    torch.testing.assert_close(grads_of(label_loss, budget=budget), grads_of(label_loss_reference))


@pytest.mark.parametrize("budget", [1, 10**6])
def test_no_gradient_of_the_head_is_filled_with_zeros(budget: int) -> None:
    head, rows = nn.Linear(4, 9), torch.randn(5, 4, requires_grad=True)
    with ZeroFills() as fills:
        label_loss(head, rows, torch.tensor([3, 8, 1, 1, 0]), torch.rand(5), budget=budget).total.backward()
    assert head.weight.grad is not None and not {(9, 4), (9,)} & {*fills.shapes}


V, D, L = 32_000, 4096, 150_000


def peak_bytes_and_flops(dtype: torch.dtype, trained: bool, autocast: bool) -> tuple[int, int]:
    """Return the peak bytes besides the arguments and the rows' gradient, and the FLOP of the forward pass."""
    with FakeTensorMode() as fakes:
        weight = nn.Parameter(torch.empty(V, D, dtype=dtype), requires_grad=trained)
        rows = torch.empty(L, D, dtype=dtype, requires_grad=True)
        ids, weights = torch.empty(L, dtype=torch.long), torch.empty(L)
    live = LiveBytes(uncounted=[weight, rows, ids, weights])
    with fakes, live, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = label_loss(lambda rows: F.linear(rows, weight), rows, ids, weights)
        assert loss.total.requires_grad
    return live.peak.total - rows.nbytes, live.flops


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)], ids=["bfloat16", "autocast"]
)
def test_logits_take_less_than_half_a_gigabyte(dtype: torch.dtype, autocast: bool) -> None:
    """All logits in float32 would take 19 GB."""
    count, flops = peak_bytes_and_flops(dtype, trained=False, autocast=autocast)
    assert count < 0.5e9
    product = 2 * V * D
    assert (
        flops == 2 * product * L + product
    )  # each row forward and backward, and the row that sets the chunk size


def test_a_trained_matrix_has_one_gradient_in_float32() -> None:
    count, flops = peak_bytes_and_flops(torch.bfloat16, trained=True, autocast=False)
    # besides the logits: the sum of all chunks in float32, and one chunk's gradient in bfloat16
    assert count - V * D * (4 + 2) < 0.5e9
    product = 2 * V * D
    assert flops == 3 * product * L + product


def test_the_flops_are_those_of_the_whole_loss_and_one_row() -> None:
    torch.manual_seed(0)
    head, ids = Head(8, 40, 3), torch.randint(42, (30,))
    rows = torch.randn(30, 8, requires_grad=True)
    counts = []
    for loss in (label_loss, label_loss_reference):
        with FlopCounterMode(display=False) as counter:
            loss(head, rows.view_as(rows), ids, torch.ones(30))[0].backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] + 2 * 8 * 43
