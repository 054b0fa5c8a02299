"""Losses of the first updates are those that transformers' `Trainer` computed before dreamkit had a loop of its own.

`python test_reference_losses.py` writes the losses of today's loop to `reference_losses.json`. Run it only after a
deliberate change of the order of documents, of their random numbers, or of a training step.
"""

import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit import Registry, load_recipe, train_recipe

REFERENCE = Path(__file__).with_name("reference_losses.json")
# The last part is how the four documents of an update were divided then: batches of an update x documents of a batch.
RUNS = [", ".join(parts) for parts in product(("stage1", "stage2"), ("packed", "apart"), ("1 x 4", "2 x 2"))]
LOGGED = ("lm", "denoising", "loss", "learning_rate", "grad_norm")


def losses(run: str, out: Path, precision: str = "float64") -> list[dict[str, Any]]:
    """Return the log of five updates without dropout, in which every setting of the optimizer has an effect."""
    stage, packing, division = run.split(", ")
    settings = {
        "packing": packing == "packed",
        "global_batch": 4,
        "micro_batch": {"1 x 4": "null", "2 x 2": 1 if packing == "packed" else 2}[division],
        "precision": precision,
        "steps": 5,
        "warmup": 2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "log_every": 1,
    }
    # as then, when only biases and norms had no weight decay
    embeddings = ["dream_queries", "new_tokens", *(["*.embed_tokens.weight"] if stage == "stage2" else [])]
    settings["groups"] = json.dumps([{"match": match, "weight_decay": 0.1} for match in embeddings])
    registry = Registry.load()
    recipe = load_recipe(
        f"digits/{stage}", [f"train.{key}={value}" for key, value in settings.items()], registry
    )
    return [{name: entry[name] for name in LOGGED} for entry in train_recipe(recipe, registry, out).log]


@pytest.mark.parametrize("run", RUNS)
def test_losses_are_those_of_the_loop_before(run: str, tmp_path: Path) -> None:
    expected = json.loads(REFERENCE.read_text())[run]
    actual = losses(run, tmp_path)
    assert len(actual) == len(expected) == 5
    for entry, other in zip(actual, expected, strict=True):
        assert entry == {
            name: None if value is None else pytest.approx(value, rel=1e-6) for name, value in other.items()
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        written = {run: losses(run, Path(scratch) / str(number)) for number, run in enumerate(RUNS)}
    REFERENCE.write_text(json.dumps(written, indent=1) + "\n")
