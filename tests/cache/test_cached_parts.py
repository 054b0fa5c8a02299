"""Of the model of a recipe, a cache loads only the modules that compute its tables."""

from __future__ import annotations

from pathlib import Path

import torch

import caches
from caches import REGISTRY
from dreamkit.cache.cached_parts import prepare_parts
from dreamkit.cache.model_check import table_module
from dreamkit.checkpoints.save import save_checkpoint
from runs import weights


def test_weights_of_other_parts_are_not_loaded_from_a_checkpoint(tmp_path: Path) -> None:
    trained = caches.build_model(caches.recipe())
    trained.set_trainable([*trained.parts()])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    save_checkpoint(trained, tmp_path / "checkpoint")
    recipe = caches.recipe(init=str(tmp_path / "checkpoint"), train={"precision": "float64"})
    parts = prepare_parts(recipe, REGISTRY, None, ["features"], torch.device("cpu"), tmp_path / "scratch")
    loaded, untrained = weights(parts.model), weights(caches.build_model(caches.recipe()))
    for name, tensor in weights(trained).items():
        if name.startswith("vision_encoder."):
            assert torch.equal(loaded[name], tensor.double()), name
        else:
            assert torch.equal(loaded[name], untrained[name]), name
    assert table_module(parts.model, "features") is parts.model.vision_encoder
    assert not (tmp_path / "scratch").exists()
