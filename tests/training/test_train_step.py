"""A training step never makes the host wait for the device: no copy back, and none there but of the batch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from transformers import TrainerCallback, TrainingArguments

import layouts
import tiny
from asking import Asked
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch, Collator
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.training.run import train_recipe
from dreamkit.training.trainer import DreamTrainer, training_arguments

REGISTRY = Registry.load()
DOCUMENTS = tiny.documents()[:4]  # the fifth is a conversation, too long for the smallest models
ALL = layouts.TRAINABLE
LORA = [{"target": name, "rank": 2} for name in ("language_model", "image_decoder")]


def miniature(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    config = REGISTRY.get(kind, name).tiny_config()
    given = {key: value for key, value in asdict(config).items() if value is not None}
    return {"name": name, **given, **settings}


def decoder(name: str, **settings: Any) -> dict[str, Any]:
    return {"model.image_decoder": miniature("image_decoder", name, **settings)}


def language(name: str) -> dict[str, Any]:
    return {"model.language_model": miniature("language_model", name)}


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
    "accumulated": ({"accumulation": 2}, {}),
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


class Watched(TrainerCallback):
    """Watches from the first step to the end of the last and all that lies between them, but for logging and saving.

    `watching` is entered anew after each step, and so knows how many there were.
    """

    def __init__(self, watching: Any) -> None:
        self.watching, self.stack, self.steps, self.running = watching, ExitStack(), 0, False

    def go_on(self) -> None:
        self.stack.close()
        if self.running:
            self.stack.enter_context(self.watching())

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.stack.close()
        try:
            yield
        finally:
            self.go_on()

    def on_step_begin(self, *args: Any, **named: Any) -> None:
        if not self.steps:
            self.running = True
            self.go_on()

    def on_step_end(self, *args: Any, **named: Any) -> None:
        self.steps += 1
        self.go_on()

    def on_epoch_end(self, *args: Any, **named: Any) -> None:
        self.running = False
        self.go_on()


@contextmanager
def watched(callback: Watched) -> Iterator[list[DreamTrainer]]:
    """Adds `callback` to the trainer that is made, and tells it."""
    made: list[DreamTrainer] = []
    init, log_or_save = DreamTrainer.__init__, DreamTrainer._maybe_log_save_evaluate

    def with_callback(self: DreamTrainer, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        self.add_callback(callback)
        made.append(self)

    def unwatched(self: DreamTrainer, *args: Any, **named: Any) -> None:
        with callback.paused() if self.control.should_log or self.control.should_save else nullcontext():
            log_or_save(self, *args, **named)

    with (
        patch.object(DreamTrainer, "__init__", with_callback),
        patch.object(DreamTrainer, "_maybe_log_save_evaluate", unwatched),
        patch("dreamkit.training.run.save_checkpoint"),
        callback.stack,  # also where a step fails
    ):
        yield made


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_a_step_asks_for_values(variant: str, tmp_path: Path) -> None:
    def counts_steps(tensor: Tensor) -> bool:
        """The optimizer's numbers of steps, which torch keeps on the host."""
        states = made[0].optimizer.state.values()
        return any(tensor is state.get("step") for state in states)

    asked = Asked(counts_steps)
    callback = Watched(asked.watching)
    fetch = _MapDatasetFetcher.fetch

    def on_host(self: Any, *args: Any) -> Any:
        with callback.paused():  # a batch is made there
            return fetch(self, *args)

    with watched(callback) as made, patch.object(_MapDatasetFetcher, "fetch", on_host):
        train_recipe(recipe(variant), REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments(DOCUMENTS)])
    assert callback.steps == 4 and asked.count > 1000
    assert asked.found == []


def on_fake_device(value: Any, fakes: FakeTensorMode) -> Any:
    """What `.to("cuda")` would make of a module or a batch, but without data."""

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
def test_nothing_is_copied_between_host_and_device_in_a_second_forward_pass(variant: str) -> None:
    """A table may be brought there in the first one. The device is of tensors without data."""
    made = recipe(variant)
    model: DreamModel = build(fit(made, REGISTRY))
    model.set_trainable(made.train.trainable)
    collator = Collator(
        model.sequencer(),
        model.vision_encoder.preprocess,
        model.image_decoder.preprocess,
        packing=made.train.packing,
        condition_drop=made.loss.condition_drop,
    )
    batch = collator(DOCUMENTS)
    fakes, asked = FakeTensorMode(allow_non_fake_inputs=True), Asked()
    has_device = {"amp.common.amp_definitely_not_available": False, "is_bf16_supported": True}
    with ExitStack() as patches:
        for name, answer in has_device.items():
            patches.enter_context(patch(f"torch.cuda.{name}", return_value=answer))
        half = torch.autocast("cuda", torch.bfloat16, enabled=made.train.precision == "bfloat16")
    batch = on_fake_device(batch, fakes)
    model = on_fake_device(model, fakes).train()
    recent = patch("dreamkit.kernels.capability.is_recent", return_value=True)
    with fakes, half, recent, torch.no_grad():
        model(batch)
        with asked:
            loss = model(batch).loss
    assert loss.device.type == "cuda" and asked.count > 100
    assert asked.found == []


@pytest.mark.parametrize("has_gpu", [True, False])
def test_batches_are_pinned_and_handed_over_without_waiting(has_gpu: bool, tmp_path: Path) -> None:
    """The trainer is told to train on the CPU all the same, and then pins nothing itself."""
    settings: dict[str, Any] = {}

    def on_cpu(**given: Any) -> TrainingArguments:
        settings.update(given)
        return TrainingArguments(**given | {"use_cpu": True})

    made = recipe("packed")
    with (
        patch("torch.cuda.is_available", return_value=has_gpu),
        patch("dreamkit.training.trainer.TrainingArguments", on_cpu),
    ):
        arguments = training_arguments(made, tmp_path)
    assert settings["dataloader_pin_memory"] == has_gpu
    model = build(fit(made, REGISTRY))
    model.set_trainable(made.train.trainable)
    collator = Collator(
        model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess, packing=True
    )
    trainer = DreamTrainer(model, made, arguments, layouts.TinyDocuments(DOCUMENTS), collator)
    asked: list[bool] = []

    def to(self: Batch, device: Any, non_blocking: bool = False) -> Batch:
        asked.append(non_blocking)
        return self

    with patch.object(Batch, "to", to):
        next(iter(trainer.get_train_dataloader()))
    assert asked and {*asked} == {has_gpu}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_a_step_waits_for_the_device(variant: str, tmp_path: Path) -> None:
    @contextmanager
    def strict() -> Iterator[None]:
        if callback.steps:  # tables are brought there in the first one
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    callback = Watched(strict)
    with watched(callback) as made:
        train_recipe(recipe(variant), REGISTRY, tmp_path / "out", datasets=[layouts.TinyDocuments(DOCUMENTS)])
    assert callback.steps == 4
    assert made[0].accelerator.non_blocking and made[0].args.dataloader_pin_memory
