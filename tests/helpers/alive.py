"""Peak bytes of real training steps, counted independently of `dreamkit plan`.

`torchrun` runs this file in each process of the sharded run of `test_plan.py`: `alive.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.dataset import Dataset
from dreamkit.distributed import is_main, join
from dreamkit.document import Document, Image, Text
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe

LENGTH = 64
ALL = ["language_model", "visual_projector", "condition_projector", "dream_queries", "new_tokens"]
JOINTS = ["visual_projector", "condition_projector", "dream_queries"]
LORA = [{"target": "language_model", "rank": 4}, {"target": "image_decoder", "rank": 4}]


class FullRows(Dataset):
    """A data set of documents of exactly `length` tokens, each with an image that is drawn and read back."""

    def __init__(self, model: DreamModel, length: int) -> None:
        picture = tiny.picture(0)
        short = Document((Text("x"), Image(picture, draw=True), Text("y")), name="short")
        missing = length - len(model.sequencer().sequence(short))
        self.document = Document((Text("x" * (1 + missing)), *short.segments[1:]), name="full")
        assert len(model.sequencer(length).sequence(self.document)) == length

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Document:
        return self.document


class StorageBytes(TorchDispatchMode):
    """A counter of the peak bytes of all living storages that are arguments or results of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, output)):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak = max(self.peak, self.now())
        return output

    def now(self) -> int:
        return self.live

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() and storage not in self.alive:
            self.alive.add(storage)
            self.live += storage.nbytes()
            weakref.finalize(storage, self.release, storage.nbytes()).atexit = False

    def release(self, count: int) -> None:
        self.live -= count


class ResizedBytes(StorageBytes):
    """The same counter for FSDP, which resizes storages."""

    def now(self) -> int:
        return sum(storage.nbytes() for storage in self.alive)

    def add(self, tensor: Tensor) -> None:
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        self.alive.add(local.untyped_storage())


def recipe(train_settings: dict[str, Any], **changes: Any) -> Recipe:
    settings = {"steps": 2, "learning_rate": 1e-3, "log_every": 1, "max_length": LENGTH, "batch_size": 4}
    data = [{"name": "pairs", "path": "unused"}]
    changed = tiny.recipe(**{"train": settings | train_settings, "data": data, **changes})
    return recipe_from_dict(changed, Registry.load(), where="tiny")


def real_peak(
    recipe: Recipe,
    out: Path,
    counter: StorageBytes | None = None,
    datasets: Sequence[Dataset] | None = None,
) -> int:
    """Return the peak bytes of two real training steps of dreamkit's trainer, by default on full rows."""
    registry = Registry.load()
    model = build(fit(recipe, registry))
    counter = counter or StorageBytes()
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    peaks: list[int] = []
    assert recipe.train.max_length is not None
    documents = datasets or [FullRows(model, recipe.train.max_length)]
    # without the checkpoint at the end, which is not part of a step
    with patch("dreamkit.training.run.save_checkpoint"), counter:
        train_recipe(
            recipe,
            registry,
            out,
            model=model,
            datasets=documents,
            on_log=lambda entry: peaks.append(counter.peak),
        )
    assert len(peaks) == recipe.train.steps or not is_main()
    return counter.peak


# a language model whose weights, gradients and optimizer states need more memory than a small batch
WIDE = {"model.language_model.config.hidden_size": 256, "model.language_model.config.intermediate_size": 768}

DEEP = WIDE | {"model.language_model.config.num_hidden_layers": 4}
SHARDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "checkpointing": ({"trainable": ALL, "batch_size": 1, "gradient_checkpointing": True}, DEEP),
    "whole replicas": ({"trainable": ALL, "batch_size": 1, "sharding": "none"}, WIDE),
    "unsharded": ({"trainable": JOINTS, "batch_size": 1, "unsharded": ["language_model"]}, DEEP),
    "bfloat16": ({"trainable": ALL, "batch_size": 1, "precision": "bfloat16"}, DEEP),
    "bfloat16, frozen": ({"trainable": JOINTS, "batch_size": 1, "precision": "bfloat16"}, DEEP),
}


def main(folder: Path) -> None:
    peaks = {}
    for name, (settings, changes) in SHARDED.items():
        changed = recipe(settings, **changes)
        join()
        peaks[name] = real_peak(changed, folder / name, ResizedBytes())
    if is_main():
        (folder / "peaks.json").write_text(json.dumps(peaks))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
