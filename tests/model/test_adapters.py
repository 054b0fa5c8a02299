"""Adapters on any parts: training, saving, merging, and loading in peft and in diffusers."""

from __future__ import annotations

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaForCausalLM

import tiny
from adapted_models import (
    REGISTRY,
    SMALL,
    VARIANTS,
    adapted as adapted,
    adapters,
    build_model,
    close,
    fixed_batch,
    outputs,
    perturb_adapters,
    sources as sources,
)
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import CheckpointError, DreamkitError
from dreamkit.model.adapters import (
    adapt,
    adapter_root,
    adapter_tensors,
    is_adapter,
    merge,
    stored_name,
    write_adapter_config,
)
from dreamkit.model.model import DreamModel
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE, AdapterSection
from dreamkit.testing import contracts
from dreamkit.testing.part_subject import Case
from dreamkit.testing.subject_kinds import SUBJECTS
from dreamkit.training.run import train_recipe
from layouts import TinyDocuments

# peft reads this attribute of transformers' models
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

COMBINATIONS = [c for count in (1, 2, 3) for c in itertools.combinations(WITH_SOURCE, count)]


def differs(adapted: Tensor, plain: Tensor) -> bool:
    """Return True if the adapter has changed the output."""
    return not torch.allclose(adapted, plain, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", COMBINATIONS, ids="+".join)
def test_any_combination_can_be_trained_saved_and_merged(
    targets: tuple[str, ...], variant: str, tmp_path: Path
) -> None:
    model = build_model(tiny.recipe(**adapters(targets, **VARIANTS[variant])))
    model.set_trainable(SMALL)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = {name.partition(".")[0] for name in trainable if is_adapter(name)}
    assert adapted == set(targets)
    kinds = {"lora_A", "lora_B", "lora_magnitude_vector"} if variant == "dora" else {"lora_A", "lora_B"}
    assert {name.split(".")[-3] for name in trainable if is_adapter(name)} == kinds

    batch = fixed_batch(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.train()(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trainable
    # After the second step: at first, the second matrix of an adapter is zero, so its first one gets no gradient.
    assert [n for n, p in model.named_parameters() if is_adapter(n) and not p.grad.any()] == []

    before = outputs(model)
    perturb_adapters(model)
    expected = outputs(model)
    assert any(differs(expected[name], before[name]) for name in expected)
    save_checkpoint(model, tmp_path / "checkpoint", registry=REGISTRY)
    loaded, _ = load_checkpoint(tmp_path / "checkpoint", REGISTRY)
    close(outputs(loaded), expected)
    for target in targets:
        part = loaded.parts()[target]
        assert merge(part) <= dict(part.named_parameters()).keys()
    assert not any(is_adapter(name) for name in loaded.state_dict())
    assert not any("base_layer" in name for name in loaded.state_dict())
    close(outputs(loaded), expected, 5e-5)


@torch.no_grad()
def test_peft_loads_the_adapter_of_a_language_model(adapted: tuple[DreamModel, Path], sources: Path) -> None:
    model, folder = adapted
    ids = torch.arange(24).view(2, 12)
    plain = LlamaForCausalLM.from_pretrained(sources / "language_model").eval()
    before = plain(ids).logits
    with_adapter = PeftModel.from_pretrained(plain, folder / "language_model").eval()
    logits = with_adapter(ids).logits
    torch.testing.assert_close(model.language_model.library_forward(ids), logits)
    assert differs(logits, before)
    config = json.loads((folder / "language_model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(sources / "language_model")
    assert (config["task_type"], config["inference_mode"]) == ("CAUSAL_LM", True)
    assert config["target_modules"] == sorted(config["target_modules"])


@torch.no_grad()
def test_peft_loads_the_adapter_of_a_vision_encoder(adapted: tuple[DreamModel, Path], sources: Path) -> None:
    model, folder = adapted
    pixels = model.vision_encoder.preprocess([tiny.picture(0), tiny.picture(1)])
    plain = CLIPVisionModel.from_pretrained(sources / "vision_encoder").eval()
    before = plain(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    with_adapter = PeftModel.from_pretrained(plain, folder / "vision_encoder").eval()
    output = with_adapter(pixel_values=pixels, output_hidden_states=True)
    features = output.hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.vision_encoder(pixels), features)
    assert differs(features, before)


def adapted_part(kind: str, name: str, folder: Path, **settings: Any) -> tuple[Any, Any, Any]:
    """Return a part with an adapter (written to `folder`), the same part without, and a function to call them."""
    subject = SUBJECTS[kind](contracts.tiny_part(REGISTRY.get(kind, name)))
    part, plain = subject.make(), subject.make()
    adapt(part, AdapterSection(kind, rank=2, alpha=6, **settings))  # type: ignore[arg-type]
    perturb_adapters(part)
    tensors = {stored_name(n): p.detach() for n, p in part.named_parameters() if is_adapter(n)}
    write_adapter_config(part, tensors, folder / "adapter", None)
    for file, (each, metadata) in adapter_tensors(part, tensors, None).items():
        save_file(each, folder / "adapter" / file, metadata)
    return part, plain, lambda part: subject.call(part, subject.inputs(Case(2, 3, seed=0)))


PARTS = [(kind, name) for kind in WITH_SOURCE for name in sorted(REGISTRY.components(kind))]


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_peft_loads_and_dreamkit_merges_the_adapter_of_every_part(
    kind: str, name: str, tmp_path: Path
) -> None:
    part, plain, call = adapted_part(kind, name, tmp_path, use_dora=True, use_rslora=True)
    before, expected = call(plain), call(part)
    assert differs(expected, before)
    # peft adds the adapter to `plain` in place
    PeftModel.from_pretrained(adapter_root(plain), tmp_path / "adapter")
    torch.testing.assert_close(call(plain), expected)
    merge(part)
    torch.testing.assert_close(call(part), expected, rtol=1e-4, atol=1e-4)


PIPELINES = {
    "stable-diffusion": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "sana": diffusers.SanaPipeline,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", sorted(REGISTRY.components("image_decoder")))
def test_a_diffusers_pipeline_loads_the_adapter_of_every_decoder(
    name: str, variant: str, tmp_path: Path
) -> None:
    part, plain, call = adapted_part("image_decoder", name, tmp_path, **VARIANTS[variant])
    before, expected = call(plain), call(part)
    assert differs(expected, before)
    parameters = inspect.signature(PIPELINES[name].__init__).parameters.values()
    arguments = {p.name: getattr(plain, p.name, None) for p in parameters if p.default is p.empty}
    del arguments["self"]
    pipeline = PIPELINES[name](**arguments | {"scheduler": plain.scheduler()})
    pipeline.load_lora_weights(tmp_path / "adapter")
    torch.testing.assert_close(call(plain), expected)
    with safe_open(tmp_path / "adapter/pytorch_lora_weights.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata[f"{part.adapter_root}.lora_alpha"] == 6


def test_adapters_of_all_kinds_of_layers_can_be_saved_and_merged(tmp_path: Path) -> None:
    modules = {
        "language_model": ["embed_tokens", "down_proj"],
        "vision_encoder": ["patch_embedding", "fc1"],
        "image_decoder": ["conv1", "to_out.0"],
    }
    change = adapters()
    for adapter in change["model.adapters"]:
        adapter["modules"] = modules[adapter["target"]]
    model = build_model(tiny.recipe(**change))
    model.set_trainable([])
    perturb_adapters(model)
    expected = outputs(model)
    save_checkpoint(model, tmp_path / "checkpoint", registry=REGISTRY)
    loaded, _ = load_checkpoint(tmp_path / "checkpoint", REGISTRY)
    close(outputs(loaded), expected)
    for target in WITH_SOURCE:
        merge(loaded.parts()[target])
    close(outputs(loaded), expected, 5e-5)


def test_an_adapter_of_tied_weights_is_not_merged() -> None:
    change: dict[str, Any] = {"model.adapters": [{"target": "language_model", "modules": ["lm_head"]}]}
    recipe = tiny.recipe(**change)
    recipe["model"]["language_model"]["config"]["tie_word_embeddings"] = True
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = build_model(recipe)
    with pytest.raises(
        DreamkitError, match=r"cannot merge the adapter of \S*lm_head: its weights are also .*embed_tokens"
    ):
        merge(model.language_model)
    assert any(is_adapter(name) for name in model.state_dict())


def test_weights_that_are_not_finite_are_not_merged() -> None:
    model = build_model(tiny.recipe(**adapters(("language_model",))))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("inf"))
    with pytest.raises(DreamkitError, match=r"cannot merge the adapter of \S*q_proj"):
        merge(model.language_model)


def test_small_parts_and_adapters_are_trained_and_saved_together(sources: Path, tmp_path: Path) -> None:
    # lora_A has a gradient from the second step with an image to draw on: lora_B is 0 before.
    settings = {"trainable": SMALL, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "log_every": 1}
    changes = adapters(use_dora=True) | {
        "train": settings | {"gradient_checkpointing": True},
        "data": [{"name": "pairs", "path": "unused"}],
    }
    recipe = recipe_from_dict(tiny.on_sources(sources, **changes), REGISTRY, where="tiny")
    initial = build(fit(recipe, REGISTRY)).state_dict()
    result = train_recipe(recipe, REGISTRY, tmp_path / "run", datasets=[TinyDocuments()])
    trained = result.model.state_dict()
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, initial[name])}
    small = ("visual_projector", "condition_projector", "dream_queries", "language_model.new_")
    assert changed == {name for name in trained if is_adapter(name) or name.startswith(small)}
    folder = tmp_path / "run/checkpoint"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert files == {
        *(f"{name}.safetensors" for name in ("visual_projector", "condition_projector", "dream_queries")),
        "language_model.safetensors",
        *(f"adapters/{target}/adapter_model.safetensors" for target in WITH_SOURCE),
        "adapters/image_decoder/pytorch_lora_weights.safetensors",
    }
    assert load_file(folder / "language_model.safetensors").keys() == {"new_embed", "new_head"}
    loaded, report = load_checkpoint(folder, REGISTRY)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items())
    assert sum(part.fresh + part.missing for part in report.parts.values()) == 0


def test_gradient_checkpointing_changes_no_gradient_of_adapters() -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = build_model(tiny.recipe(**adapters()))
        model.set_trainable(["dream_queries"])
        perturb_adapters(model)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()(fixed_batch(model)).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert recomputed.keys() == plain.keys()
    close(recomputed, plain, 1e-5)


def test_the_loss_of_an_adapted_head_uses_its_logits() -> None:
    model = build_model(
        tiny.recipe(**{"model.adapters": [{"target": "language_model", "modules": ["lm_head"]}]})
    )
    model.set_trainable(["dream_queries"])
    perturb_adapters(model)
    batch, part = fixed_batch(model), model.language_model
    hidden = torch.randn(batch.input_ids_BT.numel(), part.spec.dim)
    rows = part.final_norm(hidden[batch.label_rows_L])
    losses = F.cross_entropy(part.logits(rows), batch.label_ids_L, reduction="none")
    assert differs(F.cross_entropy(F.linear(rows, part.head().weight), batch.label_ids_L), losses.mean())
    actual = model.label_losses(hidden, batch)
    torch.testing.assert_close(actual.by_row, losses)
    adapted = [p for name, p in part.named_parameters() if is_adapter(name)]
    expected = torch.autograd.grad((losses * batch.label_weight_L).sum(), adapted)
    torch.testing.assert_close(torch.autograd.grad(actual.total, adapted), expected)


def test_an_adapter_with_another_scale_is_not_loaded(tmp_path: Path) -> None:
    targets = ("language_model",)
    save_checkpoint(build_model(tiny.recipe(**adapters(targets))), tmp_path / "checkpoint", registry=REGISTRY)
    load_weights(build_model(tiny.recipe(**adapters(targets, dropout=0.1))), tmp_path / "checkpoint")
    for settings, message in (
        ({"alpha": 7}, "expected alpha 6.0 of the adapter of language_model, got 7.0 in the recipe"),
        (
            {"use_rslora": True},
            "expected use_rslora False of the adapter of language_model, got True in the recipe",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(build_model(tiny.recipe(**adapters(targets, **settings))), tmp_path / "checkpoint")


def test_names_in_checkpoint_files() -> None:
    assert stored_name("a.base_layer.weight") == "a.weight"
    assert stored_name("default.a.lora_A.default.weight") == "default.a.lora_A.weight"
    assert stored_name("a.lora_magnitude_vector.default.weight") == "a.lora_magnitude_vector"
    assert stored_name("a.lora_embedding_A.default") == "a.lora_embedding_A"
    for name in ("a.weight", "a.lora_A.weight", "a.lora_magnitude_vector", "new_embed", ""):
        assert stored_name(name) == name
