"""Counts of the race's training steps, on tensors without data: work, masks, and memory by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import dreamkit.plan.step
from benchmarks import race
from benchmarks.training_step import without_fused_paths
from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.model.model import DreamModel
from dreamkit.plan.live_bytes import LiveBytes
from dreamkit.plan.memory import gradient_bytes, memory_of
from dreamkit.plan.rows import collator
from dreamkit.plan.step import measure_step
from dreamkit.registry.registry import Registry

PARTS = ("vision_encoder", "language_model", "image_decoder")


class MaskElements(TorchFunctionMode):
    """A counter of the elements of all masks that attention takes, each mask once."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mask = (kwargs or {}).get("attn_mask") if func is F.scaled_dot_product_attention else None
        if mask is not None:
            self.masks[id(mask)] = mask  # alive, so that no other mask gets its id
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return sum(mask.numel() for mask in self.masks.values())


@dataclass
class Counted:
    """Counts of one step: rows and their width, tokens, FLOP, elements of masks, and bytes by part."""

    rows: int
    width: int
    tokens: int
    flops: int = 0
    masks: int = 0
    bytes: dict[str, int] = field(default_factory=dict)


@cache
def counted(shape: race.Shape, is_ours: bool) -> Counted:
    """Return the counts of our step, or of the padded eager one with masks and whole logits."""
    recipe, registry = race.recipe(shape), Registry.load()
    model = build_on_meta(fit(recipe, registry))
    model.set_trainable(recipe.train.trainable)
    batch = replace(collator(model, recipe), packing=None if is_ours else False)(race.documents(shape))
    counts = Counted(*batch.input_ids_BT.shape, int((batch.segment_ids_BT >= 0).sum()))
    memory = memory_of(model.train(), recipe.train)
    with ExitStack() as stack:
        if not is_ours:
            spec = replace(model.language_model.spec, document_attention=False)
            stack.enter_context(patch.object(model.language_model, "spec", spec))
            stack.enter_context(without_fused_paths())
        kept = stack.enter_context(bytes_by_part(model))
        masks = stack.enter_context(MaskElements())
        peak, counts.flops = measure_step(model, batch, recipe, gradient_bytes(model), 1, "cpu")
    counts.masks = masks.count
    counts.bytes = {"weights": memory.weights, "optimizer states": memory.states, **kept}
    counts.bytes["logits, head's gradient and others at the peak"] = peak.total - sum(kept.values())
    return counts


@contextmanager
def bytes_by_part(model: DreamModel) -> Iterator[dict[str, int]]:
    """Measure the bytes that the forward pass of each part keeps for the backward pass of a planned step."""
    live: list[LiveBytes] = []
    kept: dict[str, int] = {}

    def record(**named: Any) -> LiveBytes:
        live.append(LiveBytes(**named))
        return live[0]

    def measured(name: str, call: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            start = live[0].now.total
            output = call(*args, **named)
            kept[f"activations of {name}"] = live[0].now.total - start
            return output

        return run

    with ExitStack() as stack:
        stack.enter_context(patch.object(dreamkit.plan.step, "LiveBytes", record))
        for name in PARTS:
            part, method = getattr(model, name), "loss" if name == "image_decoder" else "forward"
            stack.enter_context(patch.object(part, method, measured(name, getattr(part, method))))
        yield kept


def work() -> Iterator[list[Any]]:
    """Yield the rows of the table of useful tokens, operations and masks."""
    for shape in race.SHAPES:
        padded, ours = counted(shape, False), counted(shape, True)
        for name, each in (("eager, padded, masked", padded), ("ours", ours)):
            size = each.rows * each.width
            cells = [shape, name, f"{each.rows} x {each.width}", f"{each.tokens / size * 100:.0f} %"]
            yield [*cells, f"{each.flops / 1e9:.0f}", f"{each.flops / ours.flops:.2f}", f"{each.masks:,}"]


def memory() -> Iterator[list[Any]]:
    """Yield the rows of the table of memory by part, in MB, of the first shape."""
    columns = [counted(race.SHAPES[0], is_ours).bytes for is_ours in (False, True)]
    for name in columns[1]:
        yield [name, *(f"{column[name] / 1e6:.0f} MB" for column in columns)]
    yield ["total", *(f"{sum(column.values()) / 1e6:.0f} MB" for column in columns)]
