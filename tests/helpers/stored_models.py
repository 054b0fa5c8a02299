"""Models with weights as stored, built and sharded by two processes.

`torchrun` runs this file in each process of `test_build_as_stored.py`: `stored_models.py FOLDER`.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import tiny
from dreamkit.build import build as building
from dreamkit.build.build import build, build_as_stored
from dreamkit.build.fit import fit
from dreamkit.cache.model_check import table_module, weights_sha256
from dreamkit.distributed import gathered, is_main, join, whole
from dreamkit.errors import RecipeError, SourceError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import load_recipe, recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage.packages import package_folder
from dreamkit.training.sharding import shard
from stored_weights import is_within, mapped_ranges, tensors

REGISTRY = Registry.load()
PARTS = {"language_model": "llama", "vision_encoder": "siglip", "image_decoder": "stable-diffusion"}
ADAPTERS = [
    {"target": "language_model", "rank": 2, "use_dora": True},
    {"target": "image_decoder", "rank": 2, "use_dora": True},
    {"target": "vision_encoder", "rank": 2, "use_rslora": True},
]
TYPES = (torch.float32, torch.bfloat16)


def write_sources(folder: Path) -> None:
    """Write the parts of the digits with weights of each type into `folder`/TYPE/PART."""
    for dtype in TYPES:
        for part in PARTS.values():
            source = package_folder("dreamkit_digits", f"parts/{part}")
            copied = Path(shutil.copytree(source, folder / str(dtype) / part))
            for file in copied.rglob("*.safetensors"):
                state = {
                    name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                    for name, tensor in load_file(file).items()
                }
                save_file(state, file, metadata={"format": "pt"})


def digits(folder: Path, dtype: torch.dtype, *, adapters: bool = False, **train: Any) -> Recipe:
    """Return a recipe of the digits whose parts have weights of this type."""
    settings: dict[str, Any] = {
        f"model.{key}.pretrained": str(folder / str(dtype) / part) for key, part in PARTS.items()
    }
    if adapters:
        settings |= {"model.adapters": ADAPTERS, "train.trainable": ["dream_queries", "new_tokens"]}
    settings |= {f"train.{key}": value for key, value in train.items()}
    return load_recipe(
        "digits/stage2", [f"{key}={json.dumps(value)}" for key, value in settings.items()], REGISTRY
    )


def assert_same_model(recipe: Recipe, folder: Path) -> None:
    """Check that the model that two processes build and shard is that of one process."""
    expected = build(fit(recipe, REGISTRY))
    expected.set_trainable(recipe.train.trainable)
    state = torch.get_rng_state()
    scratch = folder / "run" / ".out.loading"
    model = build_as_stored(fit(recipe, REGISTRY), scratch)
    assert torch.equal(state, torch.get_rng_state())
    assert not scratch.exists()
    model.set_trainable(recipe.train.trainable)
    shard(model, torch.device("cpu"), recipe.train, as_stored=True)
    actual = tensors(model)
    assert actual.keys() == tensors(expected).keys()
    for name, tensor in tensors(expected).items():
        other = whole(actual[name])
        assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
        assert actual[name].requires_grad == tensor.requires_grad, name
    for table in ("features", "latents"):  # of a cache, whose identity has the weights
        sharded, whole_module = (table_module(each, table) for each in (model, expected))
        assert weights_sha256(sharded) == weights_sha256(whole_module)


@contextmanager
def recorded_loads() -> Iterator[list[tuple[int, str]]]:
    """Record the begin and end of each load, of all processes, in a file that they share."""
    load = building._part
    file = Path(sys.argv[1]) / "loads.txt"
    loads: list[tuple[int, str]] = []

    def recorded(cls: Any, config: Any) -> Any:
        with file.open("a") as opened:
            opened.write(f"{dist.get_rank()} begins {cls.__name__}\n")
            opened.flush()
            part = load(cls, config)
            opened.write(f"{dist.get_rank()} ends {cls.__name__}\n")
        return part

    with patch.object(building, "_part", recorded):
        yield loads


def turns(recipe: Recipe, folder: Path) -> DreamModel:
    """Build a model of parts that cannot be mapped, and check that one process builds at a time."""
    with recorded_loads():
        model = build_as_stored(fit(recipe, REGISTRY), folder / ".out.loading")
    lines = (folder / "loads.txt").read_text().split("\n")[:-1]
    assert len(lines) == 2 * 2 * 3
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert begin.replace("begins", "ends") == end, lines
    assert [line[0] for line in lines] == ["0", "0", "1", "1"] * 3
    return model


def main(folder: Path) -> None:
    join()
    if is_main():
        write_sources(folder)
    dist.barrier()
    assert_same_model(digits(folder, torch.float32), folder)
    assert_same_model(digits(folder, torch.bfloat16), folder)
    assert_same_model(digits(folder, torch.bfloat16, adapters=True), folder)
    whole = {"unsharded": ["vision_encoder"], "precision": "bfloat16"}
    assert_same_model(digits(folder, torch.bfloat16, adapters=True, cpu_offload=True, **whole), folder)
    assert_same_model(digits(folder, torch.bfloat16, adapters=True, precision="float64"), folder)
    random = recipe_from_dict(tiny.recipe(), REGISTRY, where="tiny")
    assert_same_model(random, folder)

    model = turns(random, folder)
    files = [*mapped_ranges(folder)]
    assert all(
        is_within(parameter, files)
        for part in (model.language_model.model, model.vision_encoder, model.image_decoder)
        for parameter in part.parameters()
    )

    for failing in (0, 1):

        def fail(cls: Any, config: Any, failing: int = failing, load: Any = building._part) -> Any:
            if dist.get_rank() == failing:
                raise SourceError("its weights are cut")
            return load(cls, config)

        try:
            with patch.object(building, "_part", fail):
                build_as_stored(fit(random, REGISTRY), folder / ".out.loading")
        except RecipeError as error:
            assert gathered(str(error)) == [str(error)] * 2 and "its weights are cut" in str(error)
        else:
            raise AssertionError("expected an error in both processes")
        dist.barrier()
        assert not (folder / ".out.loading").exists()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]))
