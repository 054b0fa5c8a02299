"""Peak bytes of the memory of processes that train by a proposal of `dreamkit plan`, as the system counts them.

`torchrun` runs this file in each process of `test_proposal.py`: `fitted_peaks.py FOLDER`.
"""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

import alive
from anonymous_memory import Peak
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.distributed import join
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from processes import run_in

RECIPE = "recipe.json"
# a model whose step takes hundreds of megabytes
LARGE = {
    "model.language_model.config.hidden_size": 512,
    "model.language_model.config.intermediate_size": 1536,
    "model.language_model.config.num_attention_heads": 8,
    "model.language_model.config.max_position_embeddings": 512,
    "model.language_model.config.num_hidden_layers": 8,
}
# the system gets freed memory back at once, so that it counts what lives
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(recipe: Recipe, processes: int, folder: Path) -> list[int]:
    """Return the growth of the memory of each process that builds the model and trains two steps."""
    (folder / RECIPE).write_text(json.dumps(recipe.to_dict()))
    with patch.dict(os.environ, ENVIRONMENT):
        run_in(processes, __file__, folder)
    return [int((folder / f"peak.{rank}").read_text()) for rank in range(processes)]


def main(folder: Path) -> None:
    plain = json.loads((folder / RECIPE).read_text())
    warm = alive.recipe({"trainable": alive.ALL, "batch_size": 1})
    growth(warm, folder / "warm")  # imports what a training imports
    (folder / f"peak.{os.environ['RANK']}").write_text(
        str(growth(recipe_from_dict(plain, Registry.load(), where="large"), folder / "out"))
    )
    dist.destroy_process_group()


def growth(recipe: Recipe, out: Path) -> int:
    """Return the growth of this process's memory while it builds a model and trains it on full rows."""
    registry = Registry.load()
    join()
    # without the checkpoint at the end, which is not part of a step
    with Peak() as peak, patch("dreamkit.training.run.save_checkpoint"):
        model = build(fit(recipe, registry))
        assert recipe.train.max_length is not None
        documents = alive.FullRows(model, recipe.train.max_length)
        train_recipe(recipe, registry, out, model=model, datasets=[documents])
    return peak.most - peak.before


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
