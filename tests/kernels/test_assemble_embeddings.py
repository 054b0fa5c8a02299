"""Input embeddings in one pass: kernels and reference agree to the bit, and with autograd in what is learned.

B rows, T tokens of a row, N images to read, V vision tokens of an image, K blocks of Q dream queries, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit.kernels import disabled
from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots, look_up, reference
from dreamkit.kernels.assemble_embeddings.op import sum_groups
from triton_cpu import AMPERE, HOPPER, compiled, interpreted, recorded

KERNELS = "dreamkit.kernels.assemble_embeddings.kernels"
TABLES = ("vision_NVD", "queries_QD", "weight", "added")


class Arguments(NamedTuple):
    """Those of the operator, in its order."""

    ids_BT: Tensor
    slots_BT: Tensor
    vision_rows_NV: Tensor
    vision_NVD: Tensor
    query_rows_KQ: Tensor
    queries_QD: Tensor
    weight: Tensor
    added: Tensor | None = None
    added_rows: Tensor | None = None
    scale: Tensor | None = None
    padding_id: int | None = None

    def trained(self, *names: str) -> Arguments:
        """With fresh leaves for tables, of which the named ones are trained."""
        tables = {name: getattr(self, name) for name in TABLES if getattr(self, name) is not None}
        return self._replace(
            **{name: table.detach().requires_grad_(name in names) for name, table in tables.items()}
        )

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name).grad for name in TABLES if getattr(self, name) is not None}


def arguments(
    images: int = 2,
    vision: int = 2,
    blocks: int = 2,
    queries: int = 3,
    words: int = 3,
    vocabulary: int = 4,
    added: int = 2,
    dim: int = 5,
    rows: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
    padding: bool = False,
    strided: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Arguments:
    """Slots and `words` words in any order, in `rows` rows (the last one is filled up with words)."""
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        return torch.stack([values, -values], -1)[..., 0] if strided else values

    filled = images * vision + blocks * queries
    count = -(-(filled + words) // rows) * rows
    order = torch.randperm(count, generator=generator)
    vision_rows = order[: images * vision].view(images, vision)
    query_rows = order[images * vision : filled].view(blocks, queries)
    slots = torch.full((count,), -1)
    slots[vision_rows] = torch.arange(images * vision).view(images, vision)
    slots[query_rows] = images * vision + torch.arange(queries)
    ids = torch.randint(vocabulary + added, (rows, count // rows), generator=generator)
    # added tokens lie behind the vocabulary, but for one that takes the place of its last row
    where = torch.cat([torch.full((vocabulary,), -1), torch.arange(added)])
    where[vocabulary - 1] = 0 if added else -1
    where = torch.stack([where, where], -1)[:, 0] if strided else where
    return Arguments(
        ids.to(device),
        slots.view_as(ids).to(device),
        vision_rows.to(device),
        table(images, vision, dim),
        query_rows.to(device),
        table(queries, dim),
        table(vocabulary, dim),
        table(added, dim) if added else None,
        where.to(device) if added else None,
        None if scale is None else torch.tensor(scale, dtype=dtype, device=device),
        0 if padding else None,
    )


def plainly(given: Arguments) -> Tensor:
    words_BTD = look_up(given.ids_BT, *given[6:])
    return fill_slots(words_BTD, *given[2:6])


def sizes(least_rows: int = 0) -> st.SearchStrategy[Arguments]:
    return st.builds(
        arguments,
        images=st.integers(0, 2),
        vision=st.integers(1, 3),
        blocks=st.integers(0, 3),
        queries=st.integers(1, 3),
        words=st.integers(0, 5),
        vocabulary=st.integers(1, 4),
        added=st.integers(0, 2),
        dim=st.integers(1, 9),
        rows=st.integers(1, 2),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        scale=st.sampled_from([None, 1.7]),
        padding=st.booleans(),
        strided=st.booleans(),
        seed=st.integers(0, 999),
    ).filter(lambda given: given.ids_BT.numel() > least_rows)


def check_against_autograd(given: Arguments) -> None:
    ours, theirs = given.trained(*TABLES), given.trained(*TABLES)
    found, wanted = assemble_embeddings(*ours), plainly(theirs)
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights.to(wanted)).sum().backward()
    (wanted * weights.to(wanted)).sum().backward()
    for name, gradient in theirs.gradients().items():
        torch.testing.assert_close(
            ours.gradients()[name], gradient, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )


@settings(max_examples=40, deadline=None)
@given(sizes())
def test_the_kernels_are_the_reference(given: Arguments) -> None:
    with interpreted(KERNELS) as launches:
        check_against_autograd(given)
    dim = given.weight.shape[1]
    assert launches[0].name == "copy_rows" and launches[0].grid == (given.ids_BT.numel(), 1) and dim <= 9
    assert [launch.name for launch in launches[1:]] == ["sum_rows"] * (1 + (given.added is not None))


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_gradients_without_triton(given: Arguments) -> None:
    check_against_autograd(given)


@pytest.mark.parametrize(
    "shape",
    [
        {"images": 0, "blocks": 0, "queries": 1, "words": 1},  # one row
        {"words": 0},  # all of them slots
        {"blocks": 40, "queries": 2, "images": 0},  # more repetitions than a program takes at a time
        {"dim": 2049, "blocks": 1, "images": 1},  # more columns than a program takes
        {"vocabulary": 1, "added": 0},
    ],
    ids=str,
)
def test_extremes(shape: dict[str, int]) -> None:
    with interpreted(KERNELS):
        check_against_autograd(arguments(**shape))


def test_tables_of_several_dtypes() -> None:
    """Rows come in the widest dtype of words, and each table learns in its own."""
    given = arguments()
    given = given._replace(added=given.added.double(), vision_NVD=given.vision_NVD.double())
    with interpreted(KERNELS):
        check_against_autograd(given)
    assert assemble_embeddings(*given).dtype == torch.float64


def test_no_rows_at_all() -> None:
    given = arguments(words=0, images=0, blocks=0)
    with interpreted(KERNELS) as launches:
        assert assemble_embeddings(*given).shape == (1, 0, 5)
    assert not launches


class Operators(TorchDispatchMode):
    """Notes the operators that run, and the tensors that are made of `size` elements."""

    def __init__(self, size: int = -1) -> None:
        super().__init__()
        self.size, self.names, self.made = size, [], {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        if isinstance(output, Tensor) and output.numel() == self.size:
            self.made[output.untyped_storage().data_ptr()] = output
        return output


@pytest.mark.parametrize("name", [*TABLES, None])
def test_nothing_is_computed_for_what_is_not_trained(name: str | None) -> None:
    """And nothing is read back by the host."""
    given = arguments(scale=2.0).trained(*([] if name is None else [name]))
    embeds = assemble_embeddings(*given)
    if name is None:
        assert not embeds.requires_grad
        return
    with Operators() as operators:
        embeds.backward(torch.ones_like(embeds))
    assert {each for each, gradient in given.gradients().items() if gradient is not None} == {name}
    sums = {"dreamkit::sum_groups", "aten::embedding_dense_backward", "aten::sort.stable"}
    wanted = {
        "vision_NVD": set(),
        "queries_QD": {"dreamkit::sum_groups"},
        "weight": {"aten::embedding_dense_backward"},
        "added": {"dreamkit::sum_groups", "aten::sort.stable"},
    }
    assert sums & set(operators.names) == wanted[name]
    read = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item"}
    assert not read & set(operators.names)


@pytest.mark.parametrize("triton", [True, False])
def test_gradients_are_those_of_small_differences(triton: bool) -> None:
    given = arguments(dtype=torch.float64, scale=1.5, dim=3, words=4).trained(*TABLES)

    def computed(*tables: Tensor) -> Tensor:
        return assemble_embeddings(*given._replace(**dict(zip(TABLES, tables, strict=True))))

    tables = tuple(getattr(given, name) for name in TABLES)
    if triton:
        with interpreted(KERNELS):
            assert torch.autograd.gradcheck(computed, tables, fast_mode=True)
    else:
        assert torch.autograd.gradcheck(computed, tables, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("added", [0, 2])
def test_the_operators_are_registered_soundly(added: int) -> None:
    torch.library.opcheck(assemble_embeddings, tuple(arguments(added=added, scale=1.5).trained(*TABLES)))
    rows, starts = torch.randn(6, 4), torch.tensor([0, 2, 2, 5])
    torch.library.opcheck(sum_groups, (rows, torch.randperm(6), starts))


def test_sums_are_in_order_and_in_float32_at_least() -> None:
    rows = torch.tensor([[1e8], [1.0], [-1e8], [7.0]])
    order, starts = torch.tensor([0, 1, 2, 0, 2, 1, 3]), torch.tensor([0, 3, 6])
    assert sum_groups(rows, order, starts).tolist() == [[0.0], [1.0]]
    assert sum_groups(rows.bfloat16(), order, starts).dtype == torch.float32
    assert sum_groups(rows.double(), order, starts).tolist() == [[1.0], [1.0]]


def test_the_reference_sums_without_atomics() -> None:
    with Operators() as operators:
        reference.sum_groups(torch.randn(6, 4), torch.randperm(6), torch.tensor([0, 2, 2, 5]))
    atomic = {
        "aten::index_add_",
        "aten::index_add",
        "aten::scatter_add",
        "aten::scatter_add_",
        "aten::scatter_reduce",
    }
    assert operators.names and not atomic & {name.split(".")[0] for name in operators.names}


def test_compiled_without_a_break() -> None:
    def step(given: Arguments) -> Tensor:
        return assemble_embeddings(*given).square().sum()

    ours, theirs = (arguments(scale=1.5).trained(*TABLES) for _ in range(2))
    found = torch.compile(step, backend="aot_eager", fullgraph=True)(ours)
    wanted = step(theirs)
    assert torch.equal(found, wanted)
    found.backward()
    wanted.backward()
    for name, gradient in theirs.gradients().items():
        assert torch.equal(ours.gradients()[name], gradient), name


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_ahead_of_time_without_spills(capability: int, dtype: torch.dtype) -> None:
    from dreamkit.kernels.assemble_embeddings import kernels

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    ids, vision, queries = meta(8, 512, dtype=torch.long), meta(4, 64, 4096), meta(64, 4096)
    scaled = (meta(6, 4096), meta(32006, dtype=torch.long), meta())
    with recorded(KERNELS) as launches:
        kernels.assemble(ids, ids, vision, queries, meta(32000, 4096), *scaled, dtype)
        odd = (vision.float()[..., :4095], queries.float()[:, :4095], meta(32000, 4095), None, None, None)
        kernels.assemble(ids, ids, *odd, dtype)
        kernels.sum_groups(meta(4096, 4096), meta(256, dtype=torch.long), meta(65, dtype=torch.long))
    assert [launch.name for launch in launches] == ["copy_rows", "copy_rows", "sum_rows"]
    assert [compiled(launch, capability).spills for launch in launches] == [0, 0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 45.25])
def test_on_a_gpu(dtype: torch.dtype, scale: float | None) -> None:
    given = arguments(
        3, 64, 8, 64, 700, 300, 4, 640, rows=2, dtype=dtype, scale=scale, padding=True, device="cuda"
    )
    ours, again = given.trained(*TABLES), given.trained(*TABLES)
    exact = given._replace(**{name: getattr(given, name).double() for name in TABLES}).trained(*TABLES)
    found, wanted = assemble_embeddings(*ours), plainly(given)
    assert torch.equal(found, wanted)
    grad = torch.randn_like(wanted)
    found.backward(grad)
    assemble_embeddings(*again).backward(grad)
    plainly(exact._replace(scale=None if scale is None else given.scale)).backward(grad.double())
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    for name, gradient in exact.gradients().items():
        own = ours.gradients()[name]
        assert torch.equal(own, again.gradients()[name]), f"the gradient of {name} differs from run to run"
        assert (own.double() - gradient).norm() / gradient.norm() < bound, name


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [8, 200])
def test_without_kernels_sums_are_the_same_every_time_on_a_gpu(blocks: int) -> None:
    """Of as few rows as torch sums in one way, and of as many as it sums in another."""
    given = arguments(3, 64, blocks, 64, 700, 300, 4, 640, device="cuda").trained(*TABLES)
    found = []
    with disabled():
        for _ in range(5):
            again = given.trained(*TABLES)
            embeds = assemble_embeddings(*again)
            embeds.backward(torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1)).to(embeds))
            found.append(again.gradients())
    for gradients in found[1:]:
        for name, gradient in gradients.items():
            assert torch.equal(gradient, found[0][name]), name
