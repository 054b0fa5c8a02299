"""Tiny models with adapters: build them, perturb them as training does, and compute with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.batch import Batch, Collator
from dreamkit.model.adapters import is_adapter
from dreamkit.model.model import DreamModel
from dreamkit.parts.specs import Condition
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.registry.registry import Registry

REGISTRY = Registry.load()
SMALL = ["visual_projector", "condition_projector", "dream_queries", "new_tokens"]
VARIANTS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}


def adapters(targets: tuple[str, ...] = WITH_SOURCE, **settings: Any) -> dict[str, Any]:
    """Return the change of a recipe that adds adapters."""
    return {"model.adapters": [{"target": target, "rank": 2, "alpha": 6, **settings} for target in targets]}


def build_model(recipe: dict[str, Any]) -> DreamModel:
    return build(fit(recipe_from_dict(recipe, REGISTRY, where="tiny"), REGISTRY))


def perturb_adapters(module: nn.Module) -> None:
    """Add noise to adapters, in place of training: new ones change no output."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if is_adapter(name):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def fixed_batch(model: DreamModel) -> Batch:
    """Return a batch with fixed latents, noise and timesteps."""
    collator = Collator(model.sequencer(), model.vision_encoder.preprocess, model.image_decoder.preprocess)
    batch = collator(tiny.documents())
    generator = torch.Generator().manual_seed(0)
    images = len(batch.targets_MCHW)
    latents, noise = torch.randn(2, images, 4, 8, 8, generator=generator)
    return replace(batch, latents=latents, noise=noise, timesteps=torch.arange(images) * 300 + 20)


@torch.no_grad()
def outputs(model: DreamModel) -> dict[str, Tensor]:
    """Compute logits, the loss of images, and drawn images."""
    model.eval()
    batch = fixed_batch(model)
    hidden = model.language_model(*model.inputs(batch)).flatten(0, 1)
    states = model.language_model.final_norm(hidden[batch.dream_rows_MQ])
    condition = model.condition(states)
    seed = torch.Generator().manual_seed(0)
    drawn = model.image_decoder.draw(condition, guidance=1.0, steps=2, latents=batch.noise, generators=seed)
    logits = model.language_model.logits(model.language_model.final_norm(hidden[batch.label_rows_L]))
    return {"logits": logits, "losses": model.image_losses(hidden, batch), "drawn": drawn}


def close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 0.0) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module", params=VARIANTS)
def adapted(request: Any, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DreamModel, Path]:
    """Return a model with adapters on three parts, and the folder of the adapters in its checkpoint."""
    model = build_model(tiny.on_sources(sources, **adapters(**VARIANTS[request.param])))
    model.set_trainable([])
    perturb_adapters(model)
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    save_checkpoint(model, folder, registry=REGISTRY)
    return model.eval(), folder / "adapters"


def denoising_inputs(decoder: Any) -> tuple[Tensor, Tensor, Condition]:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    context = torch.randn(2, 3, decoder.spec.context_dim, generator=torch.Generator().manual_seed(2))
    return noisy, torch.tensor([20, 700]), Condition(context)


def build_pipeline(sources: Path) -> Any:
    """Build the diffusers pipeline of the image decoder of `sources`, with the text encoder that it needs."""
    sizes = {"hidden_size": 12, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(sources / "image_decoder/vae"),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=2, **sizes)),
        tokenizer=CLIPTokenizer(vocab=words, merges=[]),
        unet=diffusers.UNet2DConditionModel.from_pretrained(sources / "image_decoder/unet"),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
