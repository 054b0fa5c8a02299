"""What can be counted without a GPU, as the last section of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asking import Asked
from dreamkit.bench import drawing, stage, training_step
from dreamkit.kernels.bench import assemble_embeddings, label_loss, query_projection
from dreamkit.kernels.bench.clock import Clock
from dreamkit.kernels.bench.figures import Figure
from dreamkit.kernels.bench.harness import Bench
from dreamkit.kernels.bench.machine import Machine
from dreamkit.kernels.query_projection import norm, projection
from dreamkit.kernels.query_projection.row_blocks import Blocks
from dreamkit.kernels.query_projection.tiles import is_fused
from dreamkit.plan.live_bytes import LiveBytes
from dreamkit.registry.registry import Registry
from triton_cpu import recorded

TITLE = "## Counts"
INTRO = f"""{TITLE}

These are no times. They are counted on a CPU, most of them on tensors without data, at the sizes that are measured
above, and `python tests/counts` writes this section anew; a test compares it.
"""
REGISTRY = Registry.load()
META = torch.device("meta")


class Written(TorchDispatchMode):
    """The number of elements of each tensor that an operator writes; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # told by the memory, for some views, such as `_unsafe_view`, say nowhere else that they are one
        given = set() if func._schema.is_mutable else {_memory(each) for each in _tensors((args, kwargs))}
        self.sizes += [each.numel() for each in _tensors(output) if _memory(each) not in given][:1]
        return output


def _tensors(tree: Any) -> list[Tensor]:
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    """Of a tensor that has data or none."""
    return tensor.untyped_storage()._cdata


def section() -> str:
    """The section, heading and all."""
    parts = [INTRO, *map("\n".join, (launches(), work(), rows(), logits(), projections(), read_back()))]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def table(head: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield from (f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def launches() -> Iterator[str]:
    """Of the eager forward pass on real sizes, and of the kernels."""
    yield "### Launches of the query projection, forward\n"
    yield "Eager, each operator that writes a tensor is a launch. A product of the vendor's library counts as one.\n"
    found = []
    for images in query_projection.IMAGES:
        inputs = query_projection.inputs(images, 768, META)
        with torch.no_grad(), Written() as eager:
            query_projection.candidates(query_projection.QUERIES)["eager"](*inputs)
        found.append([images, len(eager.sizes), _kernels(*inputs)])
    yield from table(["images", "eager", "ours"], found)


def _kernels(hidden: Tensor, base: Tensor, rows: Tensor, weight: Tensor, matrix: Tensor) -> str:
    blocks, queries, eps = Blocks(base), query_projection.QUERIES, query_projection.EPS
    modules = ("norm", "projection", "row_blocks")
    with recorded(*(f"dreamkit.kernels.query_projection.{name}" for name in modules)) as found:
        if is_fused(len(base) * queries, hidden.dtype, matrix.dtype):
            projection.query_projection(hidden, blocks, queries, weight, eps, 0.0, matrix, None)
            return str(len(found))
        norm.query_states(hidden, blocks, queries, weight, eps, 0.0, matrix.dtype)
        return str(len(found) + 1)


def work() -> Iterator[str]:
    """What the floors are made of."""
    yield "### Bytes and operations of the query projection\n"
    yield "Rows, the norm's weight, the matrix and the context, each moved once (bfloat16, D = 4096, Q = 64): the"
    yield "roofline's floor.\n"
    found = []
    for images in query_projection.IMAGES:
        for width in query_projection.WIDTHS:
            forward, both = (query_projection.work(images, width, backward) for backward in (False, True))
            cells = [f"{each / 1e6:.1f} MB, {flops / 1e9:.1f} GFLOP" for each, flops in (forward, both)]
            found.append([images, width, *cells])
    yield from table(["images", "C", "forward", "forward and backward"], found)


def rows() -> Iterator[str]:
    """Writes of as many numbers as the embeddings have, or more than half as many."""
    yield "### Writes of whole embeddings, (B, T, D), to assemble the input\n"
    geometry = assemble_embeddings.Geometry()
    inputs = geometry.inputs(META)
    size = geometry.rows * geometry.tokens * geometry.dim
    found: dict[str, int] = {}
    for name, run in assemble_embeddings.CANDIDATES.items():
        with torch.no_grad(), Written() as written:
            run(*inputs)
        found[name] = sum(each >= size for each in written.sizes)
    yield from table(list(found), [list(found.values())])


def logits() -> Iterator[str]:
    """At the fullest moment of forward and backward, on tensors without data."""
    rows, vocabulary = label_loss.MANY, label_loss.VOCABULARY
    yield "### Memory of logits and what is made of them, in the language model's loss\n"
    yield f"Of {rows} labelled rows and a vocabulary of {vocabulary}, in bfloat16: tensors as wide as the vocabulary,"
    yield "at the fullest moment of forward and backward.\n"
    found = {name: f"{_loss_bytes(loss) / 1e9:.2f} GB" for name, loss in label_loss.LOSSES.items()}
    yield from table(list(found), [list(found.values())])


class Wide(LiveBytes):
    """Counts what is as wide as the vocabulary alone."""

    def count(self, tensor: Tensor, *arguments: Any) -> None:
        if tensor.shape[-1:] == (label_loss.VOCABULARY,):
            super().count(tensor, *arguments)


def _loss_bytes(loss: Callable[..., tuple[Tensor, ...]]) -> int:
    with FakeTensorMode() as fakes:
        weight = torch.empty(label_loss.VOCABULARY, label_loss.DIM, dtype=torch.bfloat16, requires_grad=True)
        rows = torch.empty(label_loss.MANY, label_loss.DIM, dtype=torch.bfloat16, requires_grad=True)
        ids, weights = torch.empty(label_loss.MANY, dtype=torch.long), torch.empty(label_loss.MANY)
    live = Wide(uncounted=[weight])
    with fakes, live:
        loss(lambda some: F.linear(some, weight), rows, ids, weights)[0].backward()
    return live.peak.total


def projections() -> Iterator[str]:
    """Layers of the real UNet, and the calls of one in a drawing by a miniature."""
    yield "### Products that make keys and values of the context, in one drawing\n"
    cls: Any = REGISTRY.get("image_decoder", "stable-diffusion")
    real = cls.meta_modules(cls.Config(**stage.decoder_config(False, REGISTRY)))
    layers = len([*_projecting(real)])
    yield f"Stable Diffusion 1.5 with guidance, {drawing.STEPS} steps of its own scheduler: its {layers} layers, each"
    yield "called as often as one of a miniature is.\n"
    small = drawing.decoder(True, torch.device("cpu"))
    (layer, *_) = _projecting(small)
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for name, draw in (("each step", drawing.draw_projecting), ("kept", drawing.draw)):
        calls.clear()
        draw(small, *drawing.conditions(small, 1))
        found[name] = layers * len(calls)
    yield from table(list(found), [list(found.values())])


def _projecting(decoder: nn.Module) -> Iterator[nn.Module]:
    for name, module in decoder.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            yield module


def read_back() -> Iterator[str]:
    """By a whole step of a miniature: forward, backward, clipping, optimizer."""
    yield "### Values that the host reads back from the device, in one training step\n"
    made = training_step.Step(
        2, Bench(Clock(torch.device("cpu"), 0.0), Machine(Figure(0.0), {}, 0, {}), small=True)
    )
    made.run(made.packed)  # the optimizer has a state after it
    # torch keeps the optimizer's numbers of steps on the host
    asked = Asked(lambda tensor: any(tensor is state["step"] for state in made.optimizer.state.values()))
    with asked.watching():
        made.run(made.packed)
    assert asked.count > 1000
    yield from table(["ours"], [[len(asked.found)]])
