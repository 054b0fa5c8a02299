"""Checkpoints that are loaded in bfloat16: the model of a cast after loading, and the memory of one copy in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import loading_memory
import tiny
from anonymous_memory import Peak
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import DreamkitError
from dreamkit.model.model import DreamModel
from dreamkit.parts.quantized import quantized_layers
from dreamkit.plan.memory import total_bytes
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from loading_memory import MIB, SMALL, write_llama

HALF = torch.bfloat16
ADAPTER = [{"target": "language_model", "rank": 2}]


def write_checkpoint(plain: dict[str, Any], folder: Path, trainable: list[str]) -> None:
    model = build(fit(recipe_from_dict(plain, Registry.load(), where="types"), Registry.load()))
    model.set_trainable(trainable)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(model, folder)


def growth(folder: Path, **options: Any) -> int:
    """Return the most bytes by which the memory grows while a checkpoint is loaded."""
    with Peak() as peak:
        loaded = load_checkpoint(folder, **options)
    del loaded
    return peak.most - peak.before


def assert_same_tensors(actual: DreamModel, expected: DreamModel) -> None:
    found = dict(actual.named_parameters()) | dict(actual.named_buffers())
    for name, tensor in (*expected.named_parameters(), *expected.named_buffers()):
        # of a float64 recipe, the cast keeps float64 where it keeps float32 in others
        assert torch.equal(found[name].to(tensor.dtype), tensor), name


@pytest.mark.parametrize(
    ("is_sourced", "changes"),
    [
        (False, {"model.adapters": ADAPTER}),
        (True, {}),
        (True, {"model.adapters": ADAPTER}),
        (
            True,
            {
                "train": {
                    "trainable": ["visual_projector"],
                    "steps": 1,
                    "global_batch": 1,
                    "precision": "float64",
                }
            },
        ),
        (True, {"quantize": "nf4"}),
    ],
    ids=["from configs", "from sources", "adapter", "float64", "quantized"],
)
def test_a_model_is_that_of_a_cast_after_loading(
    is_sourced: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    kind = changes.pop("quantize", None) if "quantize" in changes else None
    if is_sourced:
        plain = tiny.on_sources(tiny.write_sources(tmp_path / "sources"), **changes)
    else:
        plain = tiny.recipe(**changes)
    if kind is not None:
        plain["model"]["language_model"]["quantize"] = kind
    write_checkpoint(plain, tmp_path / "saved", ["visual_projector", "dream_queries", "new_tokens"])
    expected, _ = load_checkpoint(tmp_path / "saved")
    actual, report = load_checkpoint(tmp_path / "saved", dtype="bfloat16")
    assert {p.dtype for p in actual.parameters()} == {HALF}
    assert sum(part.missing + part.fresh for part in report.parts.values()) == 0
    assert bool([*quantized_layers(actual)]) == (kind is not None)
    assert_same_tensors(actual, expected.to(HALF))


def test_loading_in_bfloat16_takes_no_copy_in_float32(tmp_path: Path) -> None:
    sizes = {"float32": (torch.float32, 4, SMALL), "half": (HALF, 4, SMALL)}
    for name, (dtype, layers, widths) in sizes.items():
        write_llama(tmp_path / name, layers, dtype, **widths)
        plain = loading_memory.settings(tmp_path / name)
        write_checkpoint(plain, tmp_path / f"{name} saved", ["visual_projector"])
    model, _ = load_checkpoint(tmp_path / "half saved", dtype=HALF)  # imports what any model needs
    weights = total_bytes(model.parameters())  # in bfloat16
    largest = max(
        2 * parameter.nbytes for parameter in model.parameters()
    )  # the rows of new tokens need its mean
    del model
    whole, mapped = growth(tmp_path / "half saved"), growth(tmp_path / "half saved", dtype=HALF)
    cast = growth(tmp_path / "float32 saved", dtype=HALF)
    print(
        f"MiB: {weights / MIB:.0f} of weights, {whole / MIB:.0f} in float32, {cast / MIB:.0f}, {mapped / MIB:.0f}"
    )
    # memory that was freed before may be used again, so the lower bounds only show that something was measured
    assert whole > 1.2 * weights
    assert 0.5 * weights < cast < 1.2 * weights + 20 * MIB  # stored in float32
    assert mapped < largest + 20 * MIB  # stored in bfloat16: mapped from the file


def test_a_trained_language_model_is_loaded_without_a_copy_in_float32(tmp_path: Path) -> None:
    write_llama(tmp_path / "half", 4, HALF, **SMALL)
    write_checkpoint(loading_memory.settings(tmp_path / "half"), tmp_path / "saved", ["language_model"])
    model, _ = load_checkpoint(tmp_path / "saved", dtype=HALF)
    weights = total_bytes(model.parameters())
    del model
    assert 0.4 * weights < growth(tmp_path / "saved", dtype=HALF) < 1.3 * weights + 20 * MIB


def test_an_unknown_type_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DreamkitError, match="dtype: expected one of float32, bfloat16, got 'half'"):
        load_checkpoint(tmp_path / "none", dtype="half")
