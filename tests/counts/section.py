"""Counts of work and memory, made without a GPU: the last section of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import (
    assemble_embeddings,
    drawing,
    label_loss,
    paper_stage,
    query_projection,
    training_step,
)
from benchmarks.race import SHAPES
from counts import race
from dreamkit.kernels.label_loss.reference import label_loss_reference
from dreamkit.kernels.query_projection import norm, projection
from dreamkit.kernels.query_projection.tiles import is_fused
from dreamkit.plan.live_bytes import LiveBytes
from dreamkit.registry.registry import Registry
from host_reads import HostReads
from triton_cpu import recorded

TITLE = "## Counts"
INTRO = f"""{TITLE}

These numbers are not times. A CPU counts them, mostly on tensors without data, at the sizes of the benchmarks.
`python tests/counts` rewrites this section; a test compares it with the code.
"""
META = torch.device("meta")


class WrittenSizes(TorchDispatchMode):
    """Number of elements of each tensor that an operator writes; a view is not written."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # compared by storage: the schema of some views, such as `_unsafe_view`, does not mark them as views
        inputs = set() if func._schema.is_mutable else {_storage(each) for each in _tensors((args, kwargs))}
        self.sizes += [each.numel() for each in _tensors(output) if _storage(each) not in inputs][:1]
        return output


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _storage(tensor: Tensor) -> int:
    """Return an identifier of the storage, also of a tensor without data."""
    return tensor.untyped_storage()._cdata


def section() -> str:
    """Return the section with its heading."""
    parts = [
        INTRO,
        *map(
            "\n".join,
            (
                launches(),
                work(),
                whole_writes(),
                logits_memory(),
                race_work(),
                race_memory(),
                key_value_products(),
                host_reads(),
            ),
        ),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield from (f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def launches() -> Iterator[str]:
    """Count the launches of the eager forward pass and of the kernels."""
    yield "### Kernel launches of the query projection, forward\n"
    yield "Each operator that writes a tensor, matrix products included, is one launch in eager PyTorch.\n"
    rows = []
    for images in query_projection.IMAGES:
        inputs = query_projection.inputs(images, 768, META)
        with torch.no_grad(), WrittenSizes() as written:
            query_projection.eager(*inputs)
        rows.append([images, len(written.sizes), _fused_launches(*inputs)])
    yield from table(["images", "eager", "ours"], rows)


def _fused_launches(hidden: Tensor, base: Tensor, rows: Tensor, norm_weight: Tensor, matrix: Tensor) -> int:
    arguments = (hidden, base, rows.shape[1], norm_weight, query_projection.EPS, 0.0)
    modules = ("norm", "projection")
    with recorded(*(f"dreamkit.kernels.query_projection.{name}" for name in modules)) as launched:
        if is_fused(rows.numel(), hidden.dtype, matrix.dtype):
            projection.query_projection(*arguments, matrix, None)
            return len(launched)
        norm.query_states(*arguments, matrix.dtype)
        return len(launched) + 1  # torch's matrix product


def work() -> Iterator[str]:
    """Count the least work of the query projection."""
    dim, queries = query_projection.DIM, query_projection.QUERIES
    yield "### Bytes and operations of the query projection\n"
    yield f"The least work in bfloat16, for D = {dim}, Q = {queries} and a context of width C. Forward moves"
    yield "rows, norm weight, matrix and context once each. Backward reads the gradient of the context, rows, norm"
    yield "weight and matrix, and writes the gradients of the last three.\n"
    rows = []
    for images in query_projection.IMAGES:
        for width in query_projection.WIDTHS:
            forward, both = query_projection.least_bytes(images, width)
            flops = 2 * images * queries * dim * width
            cells = [
                f"{b / 1e6:.1f} MB, {f / 1e9:.1f} GFLOP" for b, f in ((forward, flops), (both, 3 * flops))
            ]
            rows.append([images, width, *cells])
    yield from table(["images", "C", "forward", "forward and backward"], rows)


def whole_writes() -> Iterator[str]:
    """Count the tensors as large as the embeddings that are written."""
    yield "### Writes of whole embeddings, (B, T, D), to assemble the input\n"
    inputs = assemble_embeddings.inputs(META, *assemble_embeddings.REAL)
    tokens, dim, *_ = assemble_embeddings.REAL
    counts = {}
    for name, call in {
        "eager": assemble_embeddings.eager,
        "ours": assemble_embeddings.assemble_embeddings,
    }.items():
        with torch.no_grad(), WrittenSizes() as written:
            call(*inputs)
        counts[name] = sum(size >= assemble_embeddings.ROWS * tokens * dim for size in written.sizes)
    yield from table([*counts], [[*counts.values()]])


def logits_memory() -> Iterator[str]:
    """Measure the peak memory of logits, on tensors without data."""
    rows, vocabulary = label_loss.ROWS[-1], label_loss.VOCABULARY
    yield "### Memory of logits and their derivatives in the language model's loss\n"
    yield f"The peak of forward and backward, for {rows} labelled rows and a vocabulary of {vocabulary}, with bfloat16"
    yield "inputs. Only tensors whose last dimension is the vocabulary are counted, float32 copies included.\n"
    losses = {"eager": label_loss_reference, "ours": label_loss.label_loss}
    peaks = {name: f"{_peak_logits_bytes(loss) / 1e9:.2f} GB" for name, loss in losses.items()}
    yield from table([*peaks], [[*peaks.values()]])


class VocabularyBytes(LiveBytes):
    """Live bytes of the tensors as wide as the vocabulary."""

    def count(self, tensor: Tensor, *arguments: Any) -> None:
        if tensor.shape[-1:] == (label_loss.VOCABULARY,):
            super().count(tensor, *arguments)


def _peak_logits_bytes(loss: Callable[..., tuple[Tensor, ...]]) -> int:
    count, dim, vocabulary = label_loss.ROWS[-1], label_loss.DIM, label_loss.VOCABULARY
    with FakeTensorMode() as fakes:
        weight = torch.empty(vocabulary, dim, dtype=torch.bfloat16, requires_grad=True)
        rows = torch.empty(count, dim, dtype=torch.bfloat16, requires_grad=True)
        ids, weights = torch.empty(count, dtype=torch.long), torch.empty(count)
    live = VocabularyBytes(uncounted=[weight])
    with fakes, live:
        loss(lambda chunk: F.linear(chunk, weight), rows, ids, weights)[0].backward()
    return live.peak.total


def race_work() -> Iterator[str]:
    """Count the work of the race's steps."""
    yield "### Tokens, operations and masks of the race's steps\n"
    yield "Useful tokens are those of documents; the others fill rows. Masks are the elements of all masks that"
    yield "attention takes, each mask once.\n"
    head = ["batch", "candidate", "rows", "useful tokens", "GFLOP", "of ours", "masks"]
    yield from table(head, [*race.work()])


def race_memory() -> Iterator[str]:
    """Count the memory of the race's first step by part."""
    yield "### Memory of the race's step by part\n"
    yield f"The bytes at the peak of a step of {SHAPES[0]}, in float32. Activations are those"
    yield "that the forward pass of a part leaves for its backward pass.\n"
    yield from table(["", "eager, padded, masked", "ours"], [*race.memory()])


def key_value_products() -> Iterator[str]:
    """Count the layers of the real UNet, and the calls of such a layer in a drawing by a small one."""
    yield "### Matrix products for keys and values of the context, in one drawing\n"
    cls: Any = Registry.load().get("image_decoder", "stable-diffusion")
    config = cls.Config(config=paper_stage.parts(small=False)["image_decoder"]["config"])
    layers = len([*_key_value_layers(cls.meta_modules(config))])
    decoder, _, *conditions = drawing.inputs(1, torch.device("cpu"), small=True)
    (layer, *_) = _key_value_layers(decoder)
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    counts = {}
    for name, is_cached in (("in each step", False), ("computed once", True)):
        calls.clear()
        drawing.draw(decoder, *conditions, cached=is_cached)
        counts[name] = len(calls)
    yield f"Stable Diffusion 1.5 with guidance, in {drawing.STEPS} steps of its own scheduler. Its UNet has {layers}"
    yield "layers that compute keys or values. The calls of such a layer are counted on a small UNet: this scheduler"
    yield f"calls the UNet {counts['in each step']} times.\n"
    yield from table([*counts], [[layers * count for count in counts.values()]])


def host_reads() -> Iterator[str]:
    """Count the values that a whole step of a small model reads: forward, backward, clipping, optimizer."""
    yield "### Values that the host reads back from the device, in one training step\n"
    step = training_step.paper_step(2, torch.device("cpu"), small=True)
    step.run(step.model, step.packed)  # the optimizer has a state after it
    # torch keeps the optimizer's numbers of steps on the host
    numbers = [state["step"] for state in step.optimizer.state.values()]
    reads = HostReads(lambda tensor: any(tensor is number for number in numbers))
    with reads.watch():
        step.run(step.model, step.packed)
    assert reads.operators > 1000
    yield from table(["ours"], [[len(reads.reads)]])


def _key_value_layers(decoder: nn.Module) -> Iterator[nn.Module]:
    for name, module in decoder.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            yield module
