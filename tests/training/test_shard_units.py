"""Sharded modules: which they are, the precision in which they are gathered, and offloading, all in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

import layouts
import tiny
from dreamkit.distributed import unit_methods, units
from dreamkit.errors import RecipeError
from dreamkit.parts.part import Part
from dreamkit.recipe.sections import TrainSection
from dreamkit.registry.registry import Registry
from dreamkit.testing.part_subject import Case
from dreamkit.testing.subject_kinds import SUBJECTS
from dreamkit.training.run import train_recipe
from dreamkit.training.sharding import shard

REGISTRY = Registry.load()
NAMES = [
    (kind, name)
    for kind in ("language_model", "vision_encoder", "image_decoder")
    for name in REGISTRY.components(kind)
]
CPU = torch.device("cpu")
CASE = Case(rows=2, length=8, seed=0)


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Root(nn.Module):
    """A root whose forward pass calls a function with its part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, function: Any) -> Any:
        return function(self.part)


def sharded(part: nn.Module) -> Root:
    root = Root(part)
    mesh = init_device_mesh("cpu", (1,))
    methods = unit_methods(root)
    for module in units(root):
        fully_shard(module, mesh=mesh)
        for method in methods[module]:
            register_fsdp_forward_method(module, method)
    fully_shard(root, mesh=mesh)
    return root


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_no_part_uses_the_tensors_of_a_unit_outside_its_forward(kind: str, name: str) -> None:
    cls = REGISTRY.get(kind, name)
    subject = SUBJECTS[kind](lambda: cls.from_config(cls.tiny_config()))
    inputs = subject.inputs(CASE)

    def compute(part: Any) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(0)
        loss = subject.loss(part, inputs)
        if kind != "image_decoder":
            return loss, []
        side = part.spec.image_size
        latents = part.posterior(torch.zeros(1, 3, side, side))[0]
        return loss, [latents, part.decode(latents)]

    loss, others = compute(subject.make())
    root = sharded(subject.make())
    assert sum(isinstance(module, FSDPModule) for module in root.modules()) > 2
    sharded_loss, sharded_others = root(compute)
    sharded_loss.backward()  # gathers the units again
    torch.testing.assert_close([sharded_loss, *sharded_others], [loss, *others])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def encode(self) -> Tensor:
        return 2 * self.weight


class Blocks(Part):
    shard_units = ("Block.encode", "Other")

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()


def test_a_part_names_its_units_and_their_methods() -> None:
    both = nn.ModuleList([Blocks(), Block()])
    part: Any = both[0]
    assert units(both) == [part.block]  # not the block of another owner
    assert torch.equal(sharded(part)(lambda part: part.block.encode().detach()), torch.full((2,), 2.0))


def test_modules_that_fail_in_half_precision_are_gathered_in_float32() -> None:
    decoder: dict[str, Any] = {
        "name": "sdxl",
        "config": REGISTRY.get("image_decoder", "sdxl").tiny_config().config,
    }
    model = tiny.model(**{"model.image_decoder": decoder}).float()
    model.set_trainable(["language_model"])
    assert model.image_decoder.spec.float32_modules == ("vae",)
    shard(model, CPU, TrainSection(trainable=(), steps=1, global_batch=1, precision="bfloat16"))
    dtypes: dict[str, set[torch.dtype]] = {}

    def record(name: str, unit: nn.Module) -> None:
        weights = {each.dtype for each in unit.parameters() if not isinstance(each, DTensor)}
        dtypes.setdefault(name, set()).update(weights)

    for name, unit in model.named_modules():
        if name and type(unit).__name__.startswith("FSDP"):
            unit.register_forward_pre_hook(lambda unit, _, name=name: record(name, unit))
    make = model.collator(layouts.recipe())
    batch = make.collate([make.sequencer.sequence(tiny.documents()[3])])
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    losses.loss.backward()
    assert losses.loss.isfinite()
    in_vae = {name for name in dtypes if name.startswith("image_decoder.vae.encoder")}
    assert in_vae and all(dtypes[name] == {torch.float32} for name in in_vae)
    assert all(dtypes[name] == {torch.bfloat16} for name in dtypes.keys() - in_vae if dtypes[name])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_offloading_in_one_process_changes_nothing(tmp_path: Path) -> None:
    logs = []
    for offload in (False, True):
        out = tmp_path / str(offload)
        recipe = layouts.recipe(cpu_offload=offload, global_batch=2, save_every=1)
        data = [layouts.TinyDocuments()]
        model = train_recipe(recipe, REGISTRY, out, datasets=data).model
        assert isinstance(model.dream_queries, DTensor) == offload
        logs.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()])
    for entry, expected in zip(*logs, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_a_trained_part_cannot_be_kept_whole() -> None:
    message = "expected frozen parts in unsharded, got language_model, which trainable names too"
    with pytest.raises(RecipeError, match=message):
        layouts.recipe(unsharded=["vision_encoder", "language_model"])
