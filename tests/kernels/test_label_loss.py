"""The chunked loss against the one of all logits at once: values, gradients, and what it keeps in memory."""

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


class Words(nn.Module):
    """A head with all that heads have: a bias, a scale, a soft cap, and rows of added tokens, some in between."""

    def __init__(self, dim: int, words: int, new: int, cap: float | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.known = nn.Linear(dim, words)
        self.new = nn.Parameter(torch.randn(new, dim))
        self.cap, self.scale = cap, scale

    def forward(self, rows: Tensor) -> Tensor:
        known, new = self.known(rows), F.linear(rows, self.new)
        known = known.index_copy(-1, torch.zeros(min(1, new.shape[-1])).long(), new[..., :1])
        logits = self.scale * torch.cat([known, new[..., 1:]], dim=-1)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def gradients(
    loss: Callable[..., Any], head: nn.Module, rows: Tensor, ids: Tensor, weights: Tensor, **options: Any
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The sum and the losses of rows, and the gradients of the rows and of every parameter."""
    leaves = [rows.detach().requires_grad_(rows.requires_grad), *head.parameters()]
    total, by_row = loss(head, leaves[0], ids, weights, **options)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(torch.autograd.grad(1.7 * total, wanted, allow_unused=True) if wanted else ())
    return [total, by_row], [next(found) if leaf.requires_grad else None for leaf in leaves]


@given(
    count=st.integers(0, 9),
    sizes=st.tuples(st.integers(1, 7), st.integers(2, 9), st.integers(0, 3)),
    cap=st.sampled_from([None, 0.7, 30.0]),
    scale=st.sampled_from([1.0, 0.3]),
    learned=st.sets(st.sampled_from(["rows", "known.weight", "known.bias", "new"])),
    budget=st.sampled_from([1, 300, 700, 10**6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_chunks_are_the_whole(
    count: int,
    sizes: tuple[int, int, int],
    cap: float | None,
    scale: float,
    learned: set[str],
    budget: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    head = Words(*sizes, cap=cap, scale=scale).to(dtype)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name in learned)
    rows = torch.randn(count, sizes[0], dtype=dtype).requires_grad_("rows" in learned)
    ids = torch.randint(sizes[1] + max(sizes[2] - 1, 0), (count,))
    weights = torch.rand(count) * (torch.rand(count) < 0.8)
    found = gradients(label_loss, head, rows, ids, weights, budget=budget)
    wanted = gradients(label_loss_reference, head, rows, ids, weights)
    again = gradients(label_loss, head, rows, ids, weights, budget=budget)
    for many, reference, repeated in zip(found, wanted, again, strict=True):
        torch.testing.assert_close(many, reference)
        assert all(a is b or torch.equal(a, b) for a, b in zip(many, repeated, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [1, 10**6])
def test_gradcheck(budget: int) -> None:
    torch.manual_seed(0)
    head = Words(3, 4, 2, cap=2.0).double()
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ids, weights = torch.tensor([0, 4, 3, 1, 1]), torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0])

    def total(rows: Tensor, *_: Tensor) -> Tensor:
        return label_loss(head, rows, ids, weights, budget=budget).total

    assert torch.autograd.gradcheck(total, (rows, *head.parameters()), fast_mode=True)


def test_autocast_computes_logits_in_half_and_the_loss_in_full() -> None:
    torch.manual_seed(0)
    head, rows = Words(8, 40, 3, cap=5.0), torch.randn(30, 8, requires_grad=True)
    ids, weights = torch.randint(42, (30,)), torch.ones(30)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(label_loss, head, rows, ids, weights, budget=1)
        wanted = gradients(label_loss_reference, head, rows, ids, weights)
    torch.testing.assert_close(found[0], wanted[0])
    assert found[0][1].dtype == torch.float32
    exact = gradients(label_loss_reference, head.double(), rows.double(), ids, weights)
    for mine, library, true in zip(found[1], wanted[1], exact[1], strict=True):
        assert mine is not None and library is not None and true is not None
        assert mine.dtype == library.dtype == torch.float32
        # no further from the truth than the whole is
        assert (mine - true).norm() <= 1.2 * (library - true).norm() + 1e-6


def test_an_island_without_autocast_keeps_its_precision() -> None:
    """A head that computes in float32 also has its gradient in float32."""
    torch.manual_seed(0)
    plain, rows = nn.Linear(8, 20), torch.randn(6, 8, requires_grad=True)
    ids, weights = torch.randint(20, (6,)), torch.ones(6)

    class Island(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, rows: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return plain(rows.float())

    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(label_loss, Island(), rows, ids, weights)
    torch.testing.assert_close(found[1], gradients(label_loss_reference, plain, rows, ids, weights)[1])


def test_a_gradient_can_be_taken_twice_added_up_and_left_out() -> None:
    torch.manual_seed(0)
    head, rows = Words(4, 6, 1), torch.randn(5, 4, requires_grad=True)
    given = (head, rows, torch.randint(6, (5,)), torch.ones(5))
    total, by_row = label_loss(*given, budget=1)
    assert not by_row.requires_grad
    (once,) = torch.autograd.grad(total, rows, retain_graph=True)
    (twice,) = torch.autograd.grad(total, rows)
    assert torch.equal(once, twice)
    for _ in range(2):
        label_loss(*given, budget=1).total.backward()
    torch.testing.assert_close(rows.grad, 2 * once)
    with torch.no_grad():
        loss = label_loss(*given)
    assert not loss.total.requires_grad
    torch.testing.assert_close(loss.total, total.detach())
    head.requires_grad_(False)
    assert not label_loss(head, rows.detach(), *given[2:]).total.requires_grad


def test_one_matrix_that_two_names_lead_to_has_one_gradient() -> None:
    torch.manual_seed(0)
    table, ids = torch.randn(9, 4, requires_grad=True), torch.tensor([3, 8, 1])
    rows = F.embedding(ids, table)
    (found,) = torch.autograd.grad(
        label_loss(lambda rows: F.linear(rows, table), rows, ids, torch.ones(3)).total, table
    )
    whole = F.cross_entropy(F.linear(F.embedding(ids, table), table), ids, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(whole, table)[0])


@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_matrix_computed_before_hands_its_gradient_on(budget: int) -> None:
    """It lives on after the loss: others go through it too."""
    torch.manual_seed(0)
    leaf, rows = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    ids, weights = torch.tensor([3, 8, 1, 1, 0]), torch.rand(5)

    def found(loss: Callable[..., Any], **options: Any) -> tuple[Tensor, ...]:
        matrix = F.normalize(leaf.tanh(), dim=-1)
        total = loss(lambda some: F.linear(some, matrix), rows, ids, weights, **options)[0]
        return torch.autograd.grad(total + matrix[0].sum(), [rows, leaf])

    torch.testing.assert_close(found(label_loss, budget=budget), found(label_loss_reference))


V, D, L = 32_000, 4096, 150_000


def step(dtype: torch.dtype, learned: bool, autocast: bool) -> tuple[int, int]:
    """Bytes that live at the fullest moment besides rows, matrix and their gradients, and flops of a step."""
    with FakeTensorMode() as fakes:
        weight = nn.Parameter(torch.empty(V, D, dtype=dtype), requires_grad=learned)
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
    """All of them in float32 would take 19 GB."""
    assert V * L * 4 > 19e9
    count, flops = step(dtype, learned=False, autocast=autocast)
    print(f"{count:,} bytes")
    assert count < 0.5e9
    product = 2 * V * D
    assert (
        flops == 2 * product * L + product
    )  # of each row forward and backward, and of one that is looked at first


def test_a_learning_matrix_has_one_gradient_in_float32() -> None:
    count, flops = step(torch.bfloat16, learned=True, autocast=False)
    print(f"{count:,} bytes")
    # that of all chunks in float32, of one in bfloat16, and the logits
    assert count - V * D * (4 + 2) < 0.5e9
    product = 2 * V * D
    assert flops == 3 * product * L + product


def test_the_flops_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    head, ids = Words(8, 40, 3), torch.randint(42, (30,))
    rows = torch.randn(30, 8, requires_grad=True)
    counts = []
    for loss in (label_loss, label_loss_reference):
        with FlopCounterMode(display=False) as counter:
            loss(head, rows.view_as(rows), ids, torch.ones(30))[0].backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] + 2 * 8 * 43
