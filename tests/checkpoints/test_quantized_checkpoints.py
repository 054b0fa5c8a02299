"""Checkpoints of models with quantized parts: adapters alone, for peft and diffusers, and other weights restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import tiny
from adapted_models import (
    REGISTRY,
    SMALL,
    VARIANTS,
    adapters,
    build_model,
    build_pipeline,
    close,
    denoising_inputs,
    outputs,
    perturb_adapters,
    sources as sources,
)
from dreamkit.checkpoints.load import load_checkpoint, load_weights
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.errors import TrainingError
from dreamkit.model.adapters import is_adapter
from dreamkit.model.model import DreamModel
from dreamkit.parts.quantized import quantized_layers
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.training.run import train_recipe
from layouts import TinyDocuments

# peft reads this attribute of transformers' models
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

KINDS = ("nf4", "int8")


def recipe(sources: Path, kind: str | None, **changes: Any) -> dict[str, Any]:
    changed = tiny.on_sources(sources, **changes)
    for part in WITH_SOURCE:
        changed["model"][part]["quantize"] = kind
    return changed


def saved_model(sources: Path, folder: Path, kind: str | None, **settings: Any) -> DreamModel:
    """Write the checkpoint of a model with perturbed adapters, as after a training."""
    model = build_model(recipe(sources, kind, **adapters(**settings)))
    model.set_trainable(SMALL)
    perturb_adapters(model)
    save_checkpoint(model, folder, registry=REGISTRY)
    return model


def files(folder: Path) -> dict[str, set[str]]:
    return {path.relative_to(folder).as_posix(): {*load_file(path)} for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_no_output_and_a_checkpoint_loads_bit_by_bit(
    kind: str, variant: str, sources: Path, tmp_path: Path
) -> None:
    model = build_model(recipe(sources, kind, **adapters(**VARIANTS[variant])))
    close(outputs(model), outputs(build_model(recipe(sources, kind))), 1e-5)
    model.set_trainable(SMALL)
    perturb_adapters(model)
    save_checkpoint(model, tmp_path / "checkpoint", registry=REGISTRY)
    loaded, report = load_checkpoint(tmp_path / "checkpoint", REGISTRY)
    assert loaded.recipe is not None and loaded.recipe.model.language_model.quantize == kind
    close(outputs(loaded), outputs(model))
    assert all(report.parts[part].from_source > 0 for part in WITH_SOURCE)


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_those_of_an_adapter_of_whole_weights(kind: str, sources: Path, tmp_path: Path) -> None:
    saved_model(sources, tmp_path / "quantized", kind, use_dora=True)
    saved_model(sources, tmp_path / "whole", None, use_dora=True)
    assert files(tmp_path / "quantized") == files(tmp_path / "whole")
    names = ("adapters/language_model/adapter_config.json", "adapters/image_decoder/adapter_config.json")
    for name in names:
        assert (tmp_path / "quantized" / name).read_text() == (tmp_path / "whole" / name).read_text()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_diffusers_load_the_adapters_on_whole_weights(
    kind: str, sources: Path, tmp_path: Path
) -> None:
    saved_model(sources, tmp_path / "checkpoint", kind)
    whole, _ = load_checkpoint(tmp_path / "checkpoint", REGISTRY, quantize=False)
    whole.eval()
    assert not any(quantized_layers(whole))
    ids, adapter = torch.arange(24).view(2, 12), tmp_path / "checkpoint/adapters"
    plain = LlamaForCausalLM.from_pretrained(sources / "language_model").eval()
    logits = PeftModel.from_pretrained(plain, adapter / "language_model").eval()(ids).logits
    torch.testing.assert_close(whole.language_model.library_forward(ids), logits)

    pipeline = build_pipeline(sources)
    noisy, timesteps, condition = denoising_inputs(whole.image_decoder)
    before = pipeline.unet(noisy, timesteps, condition.context).sample
    pipeline.load_lora_weights(adapter / "image_decoder")
    after = pipeline.unet(noisy, timesteps, condition.context).sample
    torch.testing.assert_close(whole.image_decoder.denoise(noisy, timesteps, condition, {}), after)
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_without_a_source_are_saved_restored(kind: str, sources: Path, tmp_path: Path) -> None:
    """Those of a part with `config`, and those that a stage before has trained."""
    changes = {f"model.{part}.quantize": kind for part in WITH_SOURCE}
    model = build_model(tiny.recipe(**changes))
    save_checkpoint(model, tmp_path / "random", registry=REGISTRY)
    loaded, _ = load_checkpoint(tmp_path / "random", REGISTRY)
    close(outputs(loaded), outputs(model))

    trained = build_model(recipe(sources, None))
    trained.set_trainable(["language_model"])
    with torch.no_grad():
        for parameter in trained.language_model.parameters():
            parameter.mul_(1.1)
    save_checkpoint(trained, tmp_path / "trained", registry=REGISTRY)
    model = build_model(recipe(sources, kind))
    model.set_trainable([])
    plain = outputs(model)
    report = load_weights(model, tmp_path / "trained")
    assert report.parts["language_model"].missing == 0 and report.parts["image_decoder"].loaded == 0
    expected = outputs(model)
    assert not torch.allclose(plain["logits"], expected["logits"], atol=1e-3)
    for name, layer in quantized_layers(model.language_model):
        before = trained.language_model.get_submodule(name).weight
        assert 0 < (layer.weight - before).norm() / before.norm() < 0.15
    save_checkpoint(model, tmp_path / "next", registry=REGISTRY)
    assert files(tmp_path / "next").keys() == files(tmp_path / "trained").keys()
    close(outputs(load_checkpoint(tmp_path / "next", REGISTRY)[0]), expected)
    # the restored weights, whole
    whole, _ = load_checkpoint(tmp_path / "next", REGISTRY, quantize=False)
    for name, layer in quantized_layers(model.language_model):
        assert torch.equal(whole.language_model.get_submodule(name).weight, layer.weight)


def test_another_run_may_quantize_differently(sources: Path, tmp_path: Path) -> None:
    saved_model(sources, tmp_path / "nf4", "nf4")
    for kind in ("int8", None):
        model = build_model(recipe(sources, kind, **adapters()))
        load_weights(model, tmp_path / "nf4")
        saved = load_checkpoint(tmp_path / "nf4", REGISTRY)[0].state_dict()
        for name, tensor in model.state_dict().items():
            assert not is_adapter(name) or torch.equal(tensor, saved[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_quantized_parts_is_resumed(kind: str, sources: Path, tmp_path: Path) -> None:
    settings = {"trainable": SMALL, "global_batch": 2, "learning_rate": 1e-2, "save_every": 2, "log_every": 1}

    def run(out: str, kind: str | None = kind, resume: bool = False, stop: int = 0) -> Any:
        changes = {"train": settings | {"steps": 4}, "data": [{"name": "pairs", "path": "unused"}]}
        plain = recipe(sources, kind, **adapters(use_dora=True), **changes)
        loaded = recipe_from_dict(plain, REGISTRY, where="tiny")

        def interrupt(entry: Any) -> None:
            if entry["step"] == stop:
                raise RuntimeError("interrupted")

        return train_recipe(
            loaded, REGISTRY, tmp_path / out, datasets=[TinyDocuments()], resume=resume, on_log=interrupt
        )

    straight = run("straight")
    with pytest.raises(RuntimeError, match="interrupted"):
        run("resumed", stop=2)
    with pytest.raises(TrainingError, match=rf"model\.language_model\.quantize: was '{kind}', is "):
        run("resumed", kind=None, resume=True)
    resumed = run("resumed", resume=True)
    assert [entry["loss"] for entry in resumed.log] == [entry["loss"] for entry in straight.log]
    expected = straight.model.state_dict()
    changed = {n for n, t in resumed.model.state_dict().items() if not torch.equal(t, expected[n])}
    assert not changed
    assert straight.log[-1]["lm"] < straight.log[0]["lm"]


@pytest.mark.parametrize("kind", KINDS)
def test_merging_uses_the_weights_of_the_source(
    run: Callable[..., tuple[int, str, str]], kind: str, sources: Path, tmp_path: Path
) -> None:
    saved_model(sources, tmp_path / "checkpoint", kind)
    code, _, err = run("merge-adapters", tmp_path / "checkpoint", tmp_path / "merged")
    assert code == 0, err
    merged, _ = load_checkpoint(tmp_path / "merged", REGISTRY)
    assert not any(quantized_layers(merged)) and not any(map(is_adapter, merged.state_dict()))
    whole, _ = load_checkpoint(tmp_path / "checkpoint", REGISTRY, quantize=False)
    close(outputs(merged), outputs(whole), 5e-5)
