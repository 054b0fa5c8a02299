"""Two processes whose batches differ in kind: text, images to read, images to draw, both, or nothing.

`torchrun` runs this file in each process of `test_uneven_processes.py`: `uneven_processes.py FOLDER`.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

import layouts
import tiny
from collectives import Collectives
from dreamkit.data.batch import Batch
from dreamkit.distributed import is_main, join, whole, world_size
from dreamkit.model import model as module
from dreamkit.model.model import DreamModel
from dreamkit.parts.precision import full_float64
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.run import train_recipe
from dreamkit.training.sharding import shard
from host_reads import HostReads

KINDS = (
    "draws",
    "reads",
    "text",
    "interleaved",
    "idle",
)  # documents of `tiny`; "interleaved" reads and draws
PAIRS = [*product(KINDS, KINDS)]
FEW = [("text", "interleaved"), ("draws", "reads"), ("idle", "draws"), ("interleaved", "idle")]
JOINTS = ["visual_projector", "condition_projector", "dream_queries"]
ALL = [*JOINTS, "language_model", "vision_encoder", "image_decoder"]
# settings of `train`, changes of the recipe, pairs of batches, flag: fused operators
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, str]], bool]] = {
    "full": ({"trainable": ALL}, {}, PAIRS, False),
    "none": ({"trainable": ALL, "sharding": "none"}, {}, PAIRS, False),
    "frozen": ({"trainable": JOINTS}, {}, PAIRS, False),
    "checkpointing": ({"trainable": ALL, "gradient_checkpointing": True}, {}, FEW, False),
    "offload": ({"trainable": ALL, "cpu_offload": True}, {}, FEW, False),
    "operators": ({"trainable": ALL}, {}, FEW, True),
    "operators, none": ({"trainable": ALL, "sharding": "none"}, {}, FEW, True),
    "unsharded": (
        {"trainable": JOINTS, "unsharded": ["language_model", "image_decoder"]},
        {"model.adapters": layouts.ADAPTERS[:1]},
        FEW,
        False,
    ),
}
PASSES = 3  # forward passes of a counted update


def batches(model: DreamModel) -> dict[str, Batch]:
    """Return a batch of each kind."""
    make = model.collator(layouts.recipe(precision="float64"))
    sequences = [
        replace(make.sequencer.sequence(document), place=place)
        for place, document in enumerate(tiny.documents())
    ]
    return {sequence.name: make.collate([sequence]) for sequence in sequences} | {"idle": make.collate([])}


def gradients(model: DreamModel, batch: Batch, counts: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    with full_float64(True):
        (model(batch, counts=counts).loss * world_size()).backward()
    return {name: whole(each.grad) for name, each in model.named_parameters() if each.grad is not None}


def terms(model: DreamModel, batch: Batch) -> list[dict[str, Tensor]]:
    """Return the gradients of the sums of a batch's two losses."""
    with patch(f"{__name__}.world_size", lambda: 1):
        return [
            gradients(model, batch, torch.tensor(counts, dtype=batch.counts.dtype))
            for counts in ((1.0, torch.inf), (torch.inf, 1.0))
        ]


def build(settings: dict[str, Any], changes: dict[str, Any]) -> DreamModel:
    model = tiny.model(**changes)
    model.set_trainable(settings["trainable"])
    if settings.get("gradient_checkpointing"):
        model.enable_gradient_checkpointing()
    return model.train()


def errors(name: str, device: torch.device) -> dict[str, float]:
    """Return the relative errors of the gradients of each pair of batches."""
    settings, changes, pairs, with_operators = VARIANTS[name]
    alone = build(settings, changes)
    by_kind = batches(alone)
    expected = {kind: terms(alone, batch) for kind, batch in by_kind.items()}
    model = build(settings, changes)
    shard(model, device, layouts.recipe(**settings).train)
    check_layout(model, settings)
    result = {}
    for pair in pairs:
        counts = torch.stack([by_kind[kind].counts for kind in pair]).sum(0)
        with patch.object(module, "usable", lambda tensor: with_operators):
            actual = gradients(model, by_kind[pair[dist.get_rank()]], counts)
        divisors = counts.clamp(min=1)
        error = norm = 0.0
        for key, gradient in actual.items():
            same: Any = sum(
                expected[kind][index][key] / divisors[index] for kind in pair for index in range(2)
            )
            error += float((gradient - same).square().sum())
            norm += float(same.square().sum())
        assert norm > 0 or {*pair} <= {"text", "idle"}, (name, pair)  # text alone trains no joint
        assert actual.keys() == expected["text"][0].keys(), (pair, actual.keys() ^ expected["text"][0].keys())
        result[" and ".join(pair)] = error**0.5 / (norm**0.5 or 1.0)
    return result


def check_layout(model: DreamModel, settings: dict[str, Any]) -> None:
    """Check which tensors are sharded: all but the frozen ones of parts in `unsharded`."""
    for name, parameter in model.named_parameters():
        is_whole = name.partition(".")[0] in settings.get("unsharded", ()) and not parameter.requires_grad
        assert isinstance(parameter, DTensor) != is_whole, name


def counted_recipe(**settings: Any) -> Recipe:
    """Return the recipe of a counted run: one update of `PASSES` forward passes in two processes."""
    return layouts.recipe(
        global_batch=2 * PASSES, micro_batch=1, packing=False, steps=1, condition_drop=0.5, **settings
    )


def count_operations(folder: Path, **settings: Any) -> dict[str, Any]:
    """Train one update; return the number of FSDP's operations, and those that the units need."""
    watched, reads = Collectives(), HostReads()
    forward: list[str] = []  # units that run, one name for each call
    backward: list[str] = []  # those that a gradient passes through
    trained: list[str] = []

    class Watched(TrainingLoop):
        def train(self, *args: Any, **named: Any) -> None:
            for name, unit in self.model.named_modules():
                if name and type(unit).__name__.startswith("FSDP"):
                    unit.register_forward_hook(partial(self.count, name))
            super().train(*args, **named)

        def count(self, name: str, unit: nn.Module, _: Any, output: Any) -> None:
            forward.append(name)
            if any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves(output)):
                backward.append(name)
            if any(each.requires_grad for each in unit.parameters()):
                trained.append(name)

        def backward(self, *args: Any) -> Any:
            with watched, reads.watch():
                return super().backward(*args)

    with patch("dreamkit.training.run.TrainingLoop", Watched):
        train_recipe(counted_recipe(**settings), Registry.load(), folder, datasets=[layouts.TinyDocuments()])
    return {
        "counts": {name: watched.of(name) for name in ("gather", "scatter", "reduce")},
        "dtypes": sorted({f"{name} {dtype}" for name, dtype in watched.counts}),
        "forward": len(forward),
        "backward": len(backward),
        "trained": len(trained),
        "reads": reads.reads,
    }


def main(folder: Path) -> None:
    device = join()
    results: dict[str, Any] = {name: errors(name, device) for name in VARIANTS}
    for sharding in ("full", "none"):
        out = folder / f"{sharding} counted"
        results[out.name] = count_operations(out, sharding=sharding)
    results["half"] = count_operations(folder / "half", precision="bfloat16")
    if is_main():
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
