"""Training with quantized parts in two processes.

`torchrun` runs this file in each process of `test_quantized_runs.py`: `quantized_runs.py FOLDER`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tiny
from dreamkit.distributed import is_main, join
from dreamkit.parts.quantized import quantized_layers
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from dreamkit.training.run import TrainResult, train_recipe
from layouts import TinyDocuments

LAYOUTS: dict[str, dict[str, Any]] = {
    "none": {"sharding": "none"},
    "full": {"sharding": "full"},
    "hybrid": {"sharding": "hybrid", "gradient_checkpointing": True},
    "offloaded": {"sharding": "full", "cpu_offload": True, "unsharded": ["vision_encoder"]},
}
QUANTIZED = {"language_model": "nf4", "vision_encoder": "int8", "image_decoder": "nf4"}
ADAPTERS = [{"target": "language_model", "rank": 2, "use_dora": True}, {"target": "image_decoder", "rank": 2}]


def run(folder: Path, name: str, **settings: Any) -> TrainResult:
    """Train on the sources in `folder`."""
    train = {
        "trainable": ["visual_projector", "condition_projector", "dream_queries", "new_tokens"],
        **{"steps": 3, "global_batch": 4, "learning_rate": 1e-2, "log_every": 1, "precision": "float64"},
        **settings,
    }
    changes = {"train": train, "data": [{"name": "pairs", "path": "unused"}], "model.adapters": ADAPTERS}
    plain = tiny.on_sources(folder / "sources", **changes)
    for part, kind in QUANTIZED.items():
        plain["model"][part]["quantize"] = kind
    recipe = recipe_from_dict(plain, Registry.load(), where="tiny")
    return train_recipe(recipe, Registry.load(), folder / name, datasets=[TinyDocuments()])


def main(folder: Path) -> None:
    join()
    if is_main():
        tiny.write_sources(folder / "sources")
    dist.barrier()
    for name, settings in LAYOUTS.items():
        model = run(folder, name, **settings).model
        for layer_name, layer in quantized_layers(model):
            assert type(layer.packed) is torch.Tensor, layer_name  # whole, and no shard
            assert layer.packed.dtype in (torch.uint8, torch.int8)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
