"""A training step never makes the host wait for the device: it copies only the batch to it, and nothing back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from operator import methodcaller
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

import layouts
import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.updates import Updates
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from host_reads import HostReads
from runs import run
from watched_steps import WatchSteps
from zero_fills import ZeroFills

REGISTRY = Registry.load()
DOCUMENTS = tiny.documents()[:4]  # the fifth, a conversation, is too long for the smallest models
ALL = layouts.TRAINABLE
LORA = [{"target": name, "rank": 2} for name in ("language_model", "image_decoder")]


def tiny_section(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    """Return the recipe section of a tiny part, with other `settings`."""
    config = REGISTRY.get(kind, name).tiny_config()
    defaults = {key: value for key, value in asdict(config).items() if value is not None}
    return {"name": name, **defaults, **settings}


def decoder(name: str, **settings: Any) -> dict[str, Any]:
    return {"model.image_decoder": tiny_section("image_decoder", name, **settings)}


def language(name: str) -> dict[str, Any]:
    return {"model.language_model": tiny_section("language_model", name)}


FAMILIES = sorted(
    name
    for name in REGISTRY.components("language_model")
    if REGISTRY.get("language_model", name)
    .infer_spec(REGISTRY.get("language_model", name).tiny_config())
    .packing
)
SNR = decoder("stable-diffusion", snr_gamma=5.0)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "packed": ({}, {}),
    "apart": ({"packing": False}, {}),
    "accumulated": ({"accumulation": 2, "packing": False}, {}),
    "bfloat16": ({"precision": "bfloat16", "accumulation": 2}, {}),
    "checkpointing": ({"gradient_checkpointing": True}, {}),
    "adapters": ({"trainable": ["dream_queries"]}, {"model.adapters": LORA}),
    "dropped conditions": ({}, {"loss": {"condition_drop": 0.5}}),
    "min-SNR, bfloat16": ({"precision": "bfloat16"}, SNR),
    "sdxl": ({}, decoder("sdxl") | {"loss": {"condition_drop": 0.5}}),
    "sdxl, bfloat16": ({"precision": "bfloat16"}, decoder("sdxl")),
    "sd3": ({}, decoder("sd3")),
    "sd3, bfloat16": ({"precision": "bfloat16", "accumulation": 2}, decoder("sd3")),
    "sana": ({}, decoder("sana")),
    **{f"{name}": ({}, language(name)) for name in FAMILIES},
    **{f"{name}, apart": ({"packing": False}, language(name)) for name in FAMILIES},
}


def recipe(variant: str) -> Recipe:
    settings, changes = VARIANTS[variant]
    base = {"trainable": ALL, "steps": 4, "batch_size": 3, "learning_rate": 1e-3, "log_every": 2}
    changed = {"train": base | settings, "data": [{"name": "pairs", "path": "unused"}], **changes}
    return recipe_from_dict(tiny.recipe(**changed), REGISTRY, where="tiny")


READS: dict[str, Callable[[Tensor], Any]] = {
    **{name: methodcaller(name) for name in ("item", "tolist", "cpu", "numpy", "nonzero")},
    "bool": bool,
    "float": float,
    "mask": lambda tensor: tensor[tensor > 0],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_of_a_tensor_is_recorded(read: Callable[[Tensor], Any]) -> None:
    host_reads, tensor = HostReads(), torch.ones(1)
    with host_reads.watch():
        tensor + 1
    assert not host_reads.reads
    with host_reads.watch():
        read(tensor)
    assert host_reads.reads


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reads_no_value_of_a_tensor(variant: str, tmp_path: Path) -> None:
    def counts_steps(tensor: Tensor) -> bool:
        """Return True for the optimizer's numbers of steps, which are on the host."""
        states = steps.loops[0].optimizer.state.values()
        return any(tensor is state.get("step") for state in states)

    host_reads = HostReads(counts_steps)
    steps = WatchSteps(host_reads.watch)
    with steps.watching():
        train_recipe(recipe(variant), REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments(DOCUMENTS)])
    assert steps.steps == 4 and host_reads.operators > 1000
    assert host_reads.reads == []


def on_fake_device(value: Any, fakes: FakeTensorMode) -> Any:
    """Move a module or a batch to a fake GPU, where tensors have no data."""

    def fake(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return fakes.fake_tensor_converter.from_meta_and_device(fakes, meta, torch.device("cuda:0"))

    if isinstance(value, Batch):
        moved = {field.name: getattr(value, field.name) for field in fields(value)}
        for name, each in moved.items():
            if isinstance(each, Tensor):
                moved[name] = fake(each)
            elif isinstance(each, dict):
                moved[name] = {key: fake(item) for key, item in each.items()}
        return replace(value, **moved)
    for module in value.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter), parameter.requires_grad)
        module._buffers.update({n: fake(b) for n, b in module._buffers.items() if b is not None})
    return value


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_forward_pass_copies_nothing_between_host_and_device(variant: str) -> None:
    """The first pass may copy a table to the device. The device is fake."""
    settings = recipe(variant)
    model: DreamModel = build(fit(settings, REGISTRY))
    model.set_trainable(settings.train.trainable)
    collator = Collator(
        model.sequencer(),
        model.vision_encoder.preprocess,
        model.image_decoder.preprocess,
        packing=settings.train.packing,
        condition_drop=settings.loss.condition_drop,
    )
    batch = collator(DOCUMENTS)
    fakes, host_reads = FakeTensorMode(allow_non_fake_inputs=True), HostReads()
    has_device = {"amp.common.amp_definitely_not_available": False, "is_bf16_supported": True}
    with ExitStack() as patches:
        for name, answer in has_device.items():
            patches.enter_context(patch(f"torch.cuda.{name}", return_value=answer))
        half = torch.autocast("cuda", torch.bfloat16, enabled=settings.train.precision == "bfloat16")
    batch = on_fake_device(batch, fakes)
    model = on_fake_device(model, fakes).train()
    recent = patch("dreamkit.kernels.capability.is_recent", return_value=True)
    with fakes, half, recent, torch.no_grad():
        model(batch)
        with host_reads:
            loss = model(batch).loss
    assert loss.device.type == "cuda" and host_reads.operators > 100
    assert host_reads.reads == []


@pytest.mark.parametrize("has_gpu", [True, False])
def test_batches_are_pinned_and_copied_without_waiting(has_gpu: bool, tmp_path: Path) -> None:
    """The loop itself uses the CPU here, where nothing is pinned."""
    pinned: list[bool] = []
    non_blockings: list[bool] = []
    settings = recipe("packed")

    def on_device(updates: Updates, first: int, loader: Any = Updates.loader) -> DataLoader[Any]:
        def on_cpu(*args: Any, pin_memory: bool, **named: Any) -> DataLoader[Any]:
            pinned.append(pin_memory)
            return DataLoader(*args, **named)

        with (
            patch("torch.cuda.is_available", return_value=has_gpu),
            patch("dreamkit.data.updates.DataLoader", on_cpu),
        ):
            return loader(updates, first)

    def to(self: Batch, device: Any, non_blocking: bool = False) -> Batch:
        non_blockings.append(non_blocking)
        return self

    with patch.object(Updates, "loader", on_device), patch.object(Batch, "to", to):
        train_recipe(settings, REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments(DOCUMENTS)])
    assert pinned == [has_gpu] and non_blockings == [True] * settings.train.steps


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_does_not_wait_for_the_gpu(variant: str, tmp_path: Path) -> None:
    @contextmanager
    def strict() -> Iterator[None]:
        if steps.steps:  # the first step may copy tables to the device
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    steps = WatchSteps(strict)
    with steps.watching():
        train_recipe(recipe(variant), REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments(DOCUMENTS)])
    assert steps.steps == 4


def test_no_step_fills_the_gradient_of_the_head_with_zeros(tmp_path: Path) -> None:
    model = build(fit(layouts.recipe(), REGISTRY))
    shape = (model.language_model.spec.vocab_size, model.language_model.spec.dim)
    assert [weight.shape for weight in model.parameters()].count(shape) == 2  # embedding and head
    with ZeroFills() as fills:
        run(tmp_path, layouts.recipe(steps=3), model=model)
    assert fills.shapes.count(shape) == 4  # the optimizer's two means of each, made once
