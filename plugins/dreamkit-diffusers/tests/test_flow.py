"""Sana and SD3 against diffusers' own pipelines, and what they are trained on."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, StableDiffusion3Pipeline
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from dreamkit import Condition, ConfigError, DreamkitError
from dreamkit_diffusers.sana import Sana
from dreamkit_diffusers.sd3 import SD3
from dreamkit_diffusers.stable_diffusion import StableDiffusion

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = ["flow-match-euler", "dpm-solver++", "unipc"]
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(cls: Any, seed: int = 0, **changes: dict[str, Any]) -> Any:
    torch.manual_seed(seed)
    return cls.from_config(section(cls, **changes))


def section(cls: Any, settings: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Any:
    given = cls.tiny_config()
    config = {name: {**part, **changes.get(name, {})} for name, part in given.config.items()}
    return replace(given, config=config, **(settings or {}))


def condition(decoder: Any, images: int = 2, seed: int = 1) -> Condition:
    random, spec = seeded(seed), decoder.spec
    context = torch.randn(images, 5, spec.context_dim, generator=random)
    pooled = None if spec.pooled_dim is None else torch.randn(images, spec.pooled_dim, generator=random)
    return Condition(context, pooled=pooled)


def latents_of(images: int, seed: int = 3, side: int = 8) -> Tensor:
    return torch.randn(images, 4, side, side, generator=seeded(seed))


@pytest.mark.parametrize("own", [{}, DPM], ids=["euler", "dpm"])
@pytest.mark.parametrize("name", [*SCHEDULERS, None])
def test_sample_is_the_sana_pipeline(name: str | None, own: dict[str, Any]) -> None:
    decoder = make(Sana, scheduler=own, transformer={"timestep_scale": 0.5})
    pipeline = SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=decoder.vae,
        transformer=decoder.transformer,
        scheduler=decoder.scheduler(name),
    )
    pipeline.set_progress_bar_config(disable=True)
    masks = [torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]), torch.tensor([[1, 1, 0, 0, 0]]).repeat(2, 1)]
    positive, negative = (
        replace(condition(decoder, seed=seed), mask=mask) for seed, mask in zip((1, 2), masks, strict=True)
    )
    common: dict[str, Any] = {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": positive.context,
        "prompt_attention_mask": positive.mask,
        "negative_prompt_embeds": negative.context,
        "negative_prompt_attention_mask": negative.mask,
        "height": 32,
        "width": 32,
        "latents": latents_of(2, side=16),
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "use_resolution_binning": False,
    }
    with torch.no_grad():
        expected = [pipeline(**common, output_type=kind).images for kind in ("latent", "pt")]
    check_drawing(decoder, positive, negative, expected, name, latents_of(2, side=16), (32, 32))


@pytest.mark.parametrize("own", [{}, DPM], ids=["euler", "dpm"])
@pytest.mark.parametrize("name", [*SCHEDULERS, None])
def test_sample_is_the_sd3_pipeline(name: str | None, own: dict[str, Any]) -> None:
    decoder = make(SD3, scheduler=own, transformer={"qk_norm": "rms_norm", "dual_attention_layers": [0]})
    pipeline = StableDiffusion3Pipeline(
        transformer=decoder.transformer,
        scheduler=decoder.scheduler(name),
        vae=decoder.vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    positive, negative = condition(decoder), condition(decoder, seed=2)
    common: dict[str, Any] = {
        "prompt_embeds": positive.context,
        "pooled_prompt_embeds": positive.pooled,
        "negative_prompt_embeds": negative.context,
        "negative_pooled_prompt_embeds": negative.pooled,
        "num_inference_steps": 6,
        "guidance_scale": 3.0,
        "latents": latents_of(2),
    }
    with torch.no_grad():
        expected = [pipeline(**common, output_type=kind).images for kind in ("latent", "pt")]
    check_drawing(decoder, positive, negative, expected, name, latents_of(2), None)


def check_drawing(
    decoder: Any,
    positive: Condition,
    negative: Condition,
    expected: list[Tensor],
    name: str | None,
    latents: Tensor,
    size: tuple[int, int] | None,
) -> None:
    """Latents and images are those expected."""
    steps: list[Tensor] = []
    drawn = decoder.draw(
        positive,
        negative,
        scheduler=name,
        steps=6,
        guidance=3.0,
        latents=latents,
        size=size,
        on_step=lambda _, latents: steps.append(latents),
    )
    assert len(steps) == 6
    torch.testing.assert_close(steps[-1], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn, expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_the_schedulers_are_those_of_flow_matching_with_the_decoders_shift(cls: Any) -> None:
    for config in ({"shift": 2.5, "flow_shift": 9.0}, {**DPM, "flow_shift": 2.5, "shift": 9.0}):
        decoder = make(cls, scheduler=config)
        assert decoder.spec.schedulers == tuple(SCHEDULERS)
        for name in SCHEDULERS:
            scheduler = decoder.scheduler(name)
            assert scheduler.config["shift" if name == "flow-match-euler" else "flow_shift"] == 2.5
            if name != "flow-match-euler":
                assert scheduler.config.use_flow_sigmas
                assert scheduler.config.prediction_type == "flow_prediction"


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_noisy_is_what_diffusers_trains_on(cls: Any) -> None:
    decoder = make(cls)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise, timesteps = latents_of(3), latents_of(3, seed=4), scheduler.timesteps[[0, 400, 999]]
    noisy, target = decoder.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.scale_noise(clean, timesteps, noise))
    assert torch.equal(target, noise - clean)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_drawn_as_diffusers_training_scripts_do(shift: float) -> None:
    decoder = make(SD3, scheduler={"shift": shift})
    drawn = decoder.timesteps(20_000, seeded(0))
    assert torch.equal(drawn, decoder.timesteps(20_000, seeded(0)))
    assert drawn.dtype == torch.float32 and drawn.min() > 0 and drawn.max() < 1000
    density = compute_density_for_timestep_sampling(
        "logit_normal", 20_000, logit_mean=0.0, logit_std=1.0, generator=seeded(1)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = scheduler.timesteps[(density * 1000).long()]
    points = torch.linspace(0.02, 0.98, 25)
    # the quantiles of 20,000 draws are about 5 off; theirs are rounded to a table of a thousand
    torch.testing.assert_close(drawn.quantile(points), theirs.quantile(points), atol=12.0, rtol=0)


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_half_precision_still_adds_the_little_noise_of_the_first_timesteps(cls: Any) -> None:
    decoder = make(cls).bfloat16()
    clean, noise = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), latents_of(1).bfloat16()
    noisy, _ = decoder.add_noise(clean, noise, torch.tensor([0.3]))
    torch.testing.assert_close(noisy.float(), 0.0003 * noise.float(), atol=0, rtol=0.01)


def test_latents_of_a_deep_compression_autoencoder_are_scaled() -> None:
    decoder = make(Sana)
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    latents = decoder.encode(targets, seeded(2))
    with torch.no_grad():
        plain = decoder.vae.encode(targets).latent
        images = decoder.vae.decode(plain).sample
    torch.testing.assert_close(latents, plain * 0.41407)
    torch.testing.assert_close(decoder.decode(latents), (images / 2 + 0.5).clamp(0, 1))


def test_a_masked_token_does_not_matter_to_sana() -> None:
    decoder = make(Sana)
    mask, timesteps = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([400.0])
    first, other = condition(decoder, 1), condition(decoder, 1, seed=6)
    second = torch.cat([first.context[:, :3], other.context[:, 3:]], dim=1)
    outputs = [
        decoder.denoise(latents_of(1), timesteps, Condition(context, given), {})
        for context, given in (
            (first.context, mask),
            (second, mask.bool()),
            (first.context[:, :3], None),
            (second, None),
        )
    ]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[3])


def test_sd3_takes_no_mask_and_wants_a_pooled_vector() -> None:
    decoder = make(SD3)
    given, timesteps = condition(decoder, 1), torch.tensor([400.0])
    with pytest.raises(ValueError, match="has a mask, but SD3 attends to all"):
        decoder.denoise(latents_of(1), timesteps, replace(given, mask=torch.ones(1, 5)), {})
    with pytest.raises(ValueError, match=r"no pooled vector, but this decoder wants one of width 10"):
        decoder.denoise(latents_of(1), timesteps, Condition(given.context), {})


UNIPC = {**DPM, "_class_name": "UniPCMultistepScheduler"}


@pytest.mark.parametrize(
    ("own", "spacing"),
    [
        ({"shift": 3.0}, "use_karras_sigmas"),
        ({"shift": 3.0}, "use_exponential_sigmas"),
        ({"shift": 3.0}, "use_beta_sigmas"),
        (UNIPC, "use_karras_sigmas"),
    ],
)
def test_every_scheduler_draws_from_a_folder_that_spaces_its_sigmas(
    own: dict[str, Any], spacing: str
) -> None:
    decoder = make(Sana, scheduler={**own, spacing: True})
    positive, negative = condition(decoder), condition(decoder, seed=2)
    for name in (*SCHEDULERS, None):
        drawn = decoder.draw(
            positive,
            negative,
            scheduler=name,
            steps=4,
            guidance=3.0,
            latents=latents_of(2, side=16),
            size=(32, 32),
        )
        assert drawn.isfinite().all(), name


def test_a_scheduler_of_another_objective_is_told_of() -> None:
    with pytest.raises(DreamkitError, match="'ddpm' does not fit the decoder's objective, flow matching"):
        make(Sana).scheduler("ddpm")
    with pytest.raises(DreamkitError, match=r"flow-match-euler' does not fit .* denoising over a noise"):
        make(StableDiffusion).scheduler("flow-match-euler")
    with pytest.raises(DreamkitError, match="no scheduler 'unipcc'; did you mean 'unipc'"):
        make(Sana).scheduler("unipcc")


def test_the_scale_of_sanas_context() -> None:
    assert make(Sana).spec.context_scale == math.sqrt(5.5)


@pytest.mark.parametrize(
    ("cls", "changes", "key", "message"),
    [
        (SD3, {"settings": {"image_size": 18}}, "image_size", r"18 found.* multiple of 4 .*patch size of 2"),
        (SD3, {"settings": {"image_size": 52}}, "image_size", "52 found.*at most 48 pixels"),
        (SD3, {"transformer": {"sample_size": 7}}, "transformer.sample_size", "7 found, which makes 14"),
        (SD3, {"transformer": {"sample_size": 32}}, "transformer.sample_size", "64.*at most 48 pixels"),
        (SD3, {"transformer": {"caption_projection_dim": 8}}, "transformer.caption_projection_dim", "16"),
        (SD3, {"transformer": {"in_channels": 8}}, "transformer.in_channels", "is 8, but .* have 4 channels"),
        (Sana, {"settings": {"image_size": 17}}, "image_size", "17 found.* multiple of 2 pixels"),
        (Sana, {"transformer": {"guidance_embeds": True}}, "transformer.guidance_embeds", "Sana Sprint"),
        (Sana, {"transformer": {"out_channels": 8}}, "transformer.out_channels", "is 8, but .* 4 channels"),
        (Sana, {"scheduler": {"shift": 0}}, "scheduler.shift", "0 found, but a positive number"),
        (Sana, {"scheduler": {"use_dynamic_shifting": True}}, "scheduler.use_dynamic_shifting", "shift"),
        (
            Sana,
            {"scheduler": {**DPM, "prediction_type": "epsilon"}},
            "scheduler.prediction_type",
            "'epsilon' found, but 'flow_prediction' is wanted",
        ),
        (
            Sana,
            {"scheduler": {"_class_name": "DDPMScheduler"}},
            "scheduler._class_name",
            "'DDPMScheduler', but 'FlowMatchEulerDiscreteScheduler' or 'DPMSolver.* is wanted; did you mean",
        ),
        (
            Sana,
            {"scheduler": {"_class_name": "FlowMatchHeunDiscreteScheduler"}},
            "scheduler._class_name",
            "Heun.*, but 'FlowMatchEulerDiscreteScheduler' or 'DPMSolver.* or 'UniPC.* is wanted",
        ),
        (
            Sana,
            {"scheduler": {**DPM, "use_karras_sigmas": True}},
            "scheduler.use_karras_sigmas",
            "True found, but 'DPMSolverMultistepScheduler' cannot do so in flow matching; set it to false",
        ),
        (
            Sana,
            {"scheduler": {**UNIPC, "use_beta_sigmas": True}},
            "scheduler.use_beta_sigmas",
            "True found, but 'UniPCMultistepScheduler' cannot",
        ),
        (Sana, {"scheduler": {"flowshift": 2}}, "scheduler.flowshift", "did you mean 'flow_shift'"),
    ],
)
def test_what_is_refused(cls: Any, changes: dict[str, Any], key: str, message: str) -> None:
    for method in (cls.infer_spec, cls.from_config, cls.meta_modules):
        with pytest.raises(ConfigError) as caught:
            method(section(cls, **changes))
        ((found, said),) = caught.value.problems.items()
        assert found in (key, f"config.{key}")
        assert re.search(message, said), said
