"""Tiny models and their checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

REGISTRY = Registry.load()


def build_tiny(recipe: dict[str, Any] | None = None, **changes: Any) -> DreamModel:
    return build(fit(recipe_from_dict(recipe or tiny.recipe(**changes), REGISTRY, where="tiny"), REGISTRY))


def perturb(model: nn.Module) -> None:
    """Change every trainable parameter, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    a, b = actual.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    assert [name for name, tensor in a.items() if not torch.equal(tensor, b[name])] == []


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "dreamkit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny model, which no test changes."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(build_tiny(), folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of `saved`, which a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))
