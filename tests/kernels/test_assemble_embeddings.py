"""Input embeddings in one pass: kernels and reference are bitwise identical, and gradients agree with autograd.

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
from dreamkit.kernels.assemble_embeddings import assemble_embeddings, fill_slots, look_up
from triton_cpu import AMPERE, HOPPER, compiled, interpreted, recorded

KERNELS = "dreamkit.kernels.assemble_embeddings.kernels"
TABLES = ("vision_NVD", "queries_QD", "weight", "added")


class Arguments(NamedTuple):
    """The operator's arguments in its order."""

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

    def with_leaves(self, *trained: str) -> Arguments:
        """Return a copy whose tables are fresh leaves; those named in `trained` need a gradient."""
        tables = {name: getattr(self, name) for name in TABLES if getattr(self, name) is not None}
        return self._replace(
            **{name: table.detach().requires_grad_(name in trained) for name, table in tables.items()}
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
    """Make slots and `words` words in random order, in `rows` rows; more words fill the last row."""
    generator = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        return torch.stack([values, -values], -1)[..., 0] if strided else values

    slot_count = images * vision + blocks * queries
    count = -(-(slot_count + words) // rows) * rows
    order = torch.randperm(count, generator=generator)
    vision_rows = order[: images * vision].view(images, vision)
    query_rows = order[images * vision : slot_count].view(blocks, queries)
    slots = torch.full((count,), -1)
    slots[vision_rows] = torch.arange(images * vision).view(images, vision)
    slots[query_rows] = images * vision + torch.arange(queries)
    ids = torch.randint(vocabulary + added, (rows, count // rows), generator=generator)
    # added tokens follow the vocabulary, except one that replaces its last row
    added_rows = torch.cat([torch.full((vocabulary,), -1), torch.arange(added)])
    added_rows[vocabulary - 1] = 0 if added else -1
    added_rows = torch.stack([added_rows, added_rows], -1)[:, 0] if strided else added_rows
    return Arguments(
        ids.to(device),
        slots.view_as(ids).to(device),
        vision_rows.to(device),
        table(images, vision, dim),
        query_rows.to(device),
        table(queries, dim),
        table(vocabulary, dim),
        table(added, dim) if added else None,
        added_rows.to(device) if added else None,
        None if scale is None else torch.tensor(scale, dtype=dtype, device=device),
        0 if padding else None,
    )


def reference_embeddings(args: Arguments) -> Tensor:
    words_BTD = look_up(args.ids_BT, *args[6:])
    return fill_slots(words_BTD, *args[2:6])


def random_arguments() -> st.SearchStrategy[Arguments]:
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
    ).filter(lambda args: args.ids_BT.numel() > 0)


def check_against_autograd(args: Arguments) -> None:
    ours, theirs = args.with_leaves(*TABLES), args.with_leaves(*TABLES)
    actual, expected = assemble_embeddings(*ours), reference_embeddings(theirs)
    assert actual.dtype == expected.dtype and torch.equal(actual, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (actual * weights.to(expected)).sum().backward()
    (expected * weights.to(expected)).sum().backward()
    for name, gradient in theirs.gradients().items():
        torch.testing.assert_close(
            ours.gradients()[name], gradient, msg=lambda m, n=name: f"gradient of {n}: {m}"
        )


@settings(max_examples=40, deadline=None)
@given(random_arguments())
def test_the_kernels_agree_with_the_reference(args: Arguments) -> None:
    with interpreted(KERNELS) as launches:
        check_against_autograd(args)
    dim = args.weight.shape[1]
    assert [(launch.name, launch.grid) for launch in launches] == [("copy_rows", (args.ids_BT.numel(), 1))]
    assert dim <= 9


@settings(max_examples=60, deadline=None)
@given(random_arguments())
def test_gradients_without_triton_agree_with_autograd(args: Arguments) -> None:
    check_against_autograd(args)


@pytest.mark.parametrize(
    "shape",
    [
        {"images": 0, "blocks": 0, "queries": 1, "words": 1},  # a single row
        {"words": 0},  # only slots
        {"blocks": 40, "queries": 2, "images": 0},
        {"dim": 2049, "blocks": 1, "images": 1},  # more columns than one program copies
        {"vocabulary": 1, "added": 0},
    ],
    ids=str,
)
def test_extreme_sizes_agree_with_autograd(shape: dict[str, int]) -> None:
    with interpreted(KERNELS):
        check_against_autograd(arguments(**shape))


def test_tables_may_have_several_dtypes() -> None:
    """The widest dtype of the words is that of the embeddings; each gradient has its table's dtype."""
    args = arguments()
    args = args._replace(added=args.added.double(), vision_NVD=args.vision_NVD.double())
    with interpreted(KERNELS):
        check_against_autograd(args)
    assert assemble_embeddings(*args).dtype == torch.float64


def test_an_empty_input_launches_nothing() -> None:
    args = arguments(words=0, images=0, blocks=0)
    with interpreted(KERNELS) as launches:
        assert assemble_embeddings(*args).shape == (1, 0, 5)
    assert not launches


class OperatorNames(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*TABLES, None])
def test_a_frozen_table_costs_no_gradient(name: str | None) -> None:
    args = arguments(scale=2.0).with_leaves(*([] if name is None else [name]))
    embeds = assemble_embeddings(*args)
    if name is None:
        assert not embeds.requires_grad
        return
    with OperatorNames() as operators:
        embeds.backward(torch.ones_like(embeds))
    assert {each for each, gradient in args.gradients().items() if gradient is not None} == {name}
    sums = {"aten::sum.dim_IntList", "aten::embedding_dense_backward"}
    expected = {
        "vision_NVD": set(),
        "queries_QD": {"aten::sum.dim_IntList"},
        "weight": {"aten::embedding_dense_backward"},
        "added": {"aten::embedding_dense_backward"},
    }
    assert sums & set(operators.names) == expected[name]


@pytest.mark.parametrize("triton", [True, False])
def test_gradients_agree_with_finite_differences(triton: bool) -> None:
    args = arguments(dtype=torch.float64, scale=1.5, dim=3, words=4).with_leaves(*TABLES)

    def embeddings(*tables: Tensor) -> Tensor:
        return assemble_embeddings(*args._replace(**dict(zip(TABLES, tables, strict=True))))

    tables = tuple(getattr(args, name) for name in TABLES)
    if triton:
        with interpreted(KERNELS):
            assert torch.autograd.gradcheck(embeddings, tables, fast_mode=True)
    else:
        assert torch.autograd.gradcheck(embeddings, tables, fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("added", [0, 2])
def test_the_operators_pass_opcheck(added: int) -> None:
    torch.library.opcheck(assemble_embeddings, tuple(arguments(added=added, scale=1.5).with_leaves(*TABLES)))


def test_gradients_are_summed_without_atomics() -> None:
    args = arguments().with_leaves(*TABLES)
    embeds = assemble_embeddings(*args)
    with OperatorNames() as operators:
        embeds.backward(torch.ones_like(embeds))
    atomic = {
        "aten::index_add_",
        "aten::index_add",
        "aten::scatter_add",
        "aten::scatter_add_",
        "aten::scatter_reduce",
    }
    assert operators.names and not atomic & {name.split(".")[0] for name in operators.names}


def test_torch_compile_has_no_graph_break() -> None:
    def step(args: Arguments) -> Tensor:
        return assemble_embeddings(*args).square().sum()

    ours, theirs = (arguments(scale=1.5).with_leaves(*TABLES) for _ in range(2))
    actual = torch.compile(step, backend="aot_eager", fullgraph=True)(ours)
    expected = step(theirs)
    assert torch.equal(actual, expected)
    actual.backward()
    expected.backward()
    for name, gradient in theirs.gradients().items():
        assert torch.equal(ours.gradients()[name], gradient), name


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_compiled_kernels_do_not_spill(capability: int, dtype: torch.dtype) -> None:
    from dreamkit.kernels.assemble_embeddings import kernels

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    ids, vision, queries = meta(8, 512, dtype=torch.long), meta(4, 64, 4096), meta(64, 4096)
    scaled = (meta(6, 4096), meta(32006, dtype=torch.long), meta())
    with recorded(KERNELS) as launches:
        kernels.assemble(ids, ids, vision, queries, meta(32000, 4096), *scaled, dtype)
        odd = (vision.float()[..., :4095], queries.float()[:, :4095], meta(32000, 4095), None, None, None)
        kernels.assemble(ids, ids, *odd, dtype)
    assert [launch.name for launch in launches] == ["copy_rows", "copy_rows"]
    assert [compiled(launch, capability).spills for launch in launches] == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 45.25])
def test_on_a_gpu_runs_are_identical_and_close_to_float64(dtype: torch.dtype, scale: float | None) -> None:
    args = arguments(
        3, 64, 8, 64, 700, 300, 4, 640, rows=2, dtype=dtype, scale=scale, padding=True, device="cuda"
    )
    ours, again = args.with_leaves(*TABLES), args.with_leaves(*TABLES)
    exact = args._replace(**{name: getattr(args, name).double() for name in TABLES}).with_leaves(*TABLES)
    actual, expected = assemble_embeddings(*ours), reference_embeddings(args)
    assert torch.equal(actual, expected)
    grad = torch.randn_like(expected)
    actual.backward(grad)
    assemble_embeddings(*again).backward(grad)
    reference_embeddings(exact._replace(scale=None if scale is None else args.scale)).backward(grad.double())
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    for name, gradient in exact.gradients().items():
        own = ours.gradients()[name]
        assert torch.equal(own, again.gradients()[name]), f"the gradient of {name} differs from run to run"
        assert (own.double() - gradient).norm() / gradient.norm() < bound, name


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [8, 200])
def test_without_kernels_gradients_are_identical_in_every_run_on_a_gpu(blocks: int) -> None:
    """torch sums few rows and many rows in two ways."""
    args = arguments(3, 64, blocks, 64, 700, 300, 4, 640, device="cuda").with_leaves(*TABLES)
    runs = []
    with disabled():
        for _ in range(5):
            again = args.with_leaves(*TABLES)
            embeds = assemble_embeddings(*again)
            embeds.backward(torch.randn(embeds.shape, generator=torch.Generator().manual_seed(1)).to(embeds))
            runs.append(again.gradients())
    for gradients in runs[1:]:
        for name, gradient in gradients.items():
            assert torch.equal(gradient, runs[0][name]), name
