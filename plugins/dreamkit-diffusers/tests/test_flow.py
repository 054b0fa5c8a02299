"""Sana and SD3 agree with diffusers' own pipelines and training scripts."""

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
from tiny_decoders import condition_of, latents_of, seeded, tiny_config, tiny_decoder

# diffusers' schedulers convert tensors to arrays in a way that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = ["flow-match-euler", "dpm-solver++", "unipc"]
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


@pytest.mark.parametrize("own", [{}, DPM], ids=["euler", "dpm"])
@pytest.mark.parametrize("name", [*SCHEDULERS, None])
def test_draw_agrees_with_the_sana_pipeline(name: str | None, own: dict[str, Any]) -> None:
    decoder = tiny_decoder(Sana, scheduler=own, transformer={"timestep_scale": 0.5})
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
        replace(condition_of(decoder, seed=seed), mask=mask) for seed, mask in zip((1, 2), masks, strict=True)
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
def test_draw_agrees_with_the_sd3_pipeline(name: str | None, own: dict[str, Any]) -> None:
    decoder = tiny_decoder(
        SD3, scheduler=own, transformer={"qk_norm": "rms_norm", "dual_attention_layers": [0]}
    )
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
    positive, negative = condition_of(decoder), condition_of(decoder, seed=2)
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
    """Check the last latents and the images of a drawing."""
    steps: list[Tensor] = []
    images = decoder.draw(
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
    torch.testing.assert_close(images, expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_every_scheduler_has_the_decoders_shift(cls: Any) -> None:
    for config in ({"shift": 2.5, "flow_shift": 9.0}, {**DPM, "flow_shift": 2.5, "shift": 9.0}):
        decoder = tiny_decoder(cls, scheduler=config)
        assert decoder.spec.schedulers == tuple(SCHEDULERS)
        for name in SCHEDULERS:
            scheduler = decoder.scheduler(name)
            assert scheduler.config["shift" if name == "flow-match-euler" else "flow_shift"] == 2.5
            if name != "flow-match-euler":
                assert scheduler.config.use_flow_sigmas
                assert scheduler.config.prediction_type == "flow_prediction"


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_add_noise_agrees_with_diffusers(cls: Any) -> None:
    decoder = tiny_decoder(cls)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise, timesteps = latents_of(3), latents_of(3, seed=4), scheduler.timesteps[[0, 400, 999]]
    noisy, target = decoder.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.scale_noise(clean, timesteps, noise))
    assert torch.equal(target, noise - clean)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_are_sampled_as_in_diffusers_training_scripts(shift: float) -> None:
    decoder = tiny_decoder(SD3, scheduler={"shift": shift})
    timesteps = decoder.timesteps(20_000, seeded(0))
    assert timesteps.dtype == torch.float32 and timesteps.min() > 0 and timesteps.max() < 1000
    density = compute_density_for_timestep_sampling(
        "logit_normal", 20_000, logit_mean=0.0, logit_std=1.0, generator=seeded(1)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    expected = scheduler.timesteps[(density * 1000).long()]
    points = torch.linspace(0.02, 0.98, 25)
    # quantiles of 20,000 samples differ by about 5; the expected ones are rounded to a table of a thousand
    torch.testing.assert_close(timesteps.quantile(points), expected.quantile(points), atol=12.0, rtol=0)


@pytest.mark.parametrize("cls", [Sana, SD3])
def test_half_precision_still_adds_the_little_noise_of_the_first_timesteps(cls: Any) -> None:
    decoder = tiny_decoder(cls).bfloat16()
    clean, noise = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), latents_of(1).bfloat16()
    noisy, _ = decoder.add_noise(clean, noise, torch.tensor([0.3]))
    torch.testing.assert_close(noisy.float(), 0.0003 * noise.float(), atol=0, rtol=0.01)


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_the_autoencoders_scaled_and_shifted(shift: float | None) -> None:
    decoder = tiny_decoder(SD3, vae={"scaling_factor": 0.5, "shift_factor": shift})
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    latents = decoder.encode(targets, seeded(2))
    with torch.no_grad():
        posterior = decoder.vae.encode(targets).latent_dist
        images = decoder.vae.decode(posterior.sample(seeded(2))).sample
    torch.testing.assert_close(latents, (posterior.sample(seeded(2)) - (shift or 0)) * 0.5)
    torch.testing.assert_close(decoder.decode(latents), (images / 2 + 0.5).clamp(0, 1))


def test_latents_of_a_deep_compression_autoencoder_are_scaled() -> None:
    decoder = tiny_decoder(Sana)
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    latents = decoder.encode(targets, seeded(2))
    with torch.no_grad():
        plain = decoder.vae.encode(targets).latent
        images = decoder.vae.decode(plain).sample
    torch.testing.assert_close(latents, plain * 0.41407)
    torch.testing.assert_close(decoder.decode(latents), (images / 2 + 0.5).clamp(0, 1))


def test_masked_tokens_change_nothing_in_sana() -> None:
    decoder = tiny_decoder(Sana)
    mask, timesteps = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([400.0])
    context, other = (condition_of(decoder, 1, seed).context for seed in (1, 6))
    changed = torch.cat([context[:, :3], other[:, 3:]], dim=1)
    conditions = (
        Condition(context, mask),
        Condition(changed, mask.bool()),
        Condition(context[:, :3]),
        Condition(changed),
    )
    outputs = [decoder.denoise(latents_of(1), timesteps, condition, {}) for condition in conditions]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[3])


def test_sd3_requires_a_pooled_vector_and_no_mask() -> None:
    decoder = tiny_decoder(SD3)
    condition, timesteps = condition_of(decoder, 1), torch.tensor([400.0])
    with pytest.raises(ValueError, match="expected a condition without a mask"):
        decoder.denoise(latents_of(1), timesteps, replace(condition, mask=torch.ones(1, 5)), {})
    with pytest.raises(ValueError, match=r"expected a condition with a pooled vector \(N, 10\), got none"):
        decoder.denoise(latents_of(1), timesteps, Condition(condition.context), {})


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
def test_every_scheduler_draws_with_a_config_that_spaces_its_sigmas(
    own: dict[str, Any], spacing: str
) -> None:
    decoder = tiny_decoder(Sana, scheduler={**own, spacing: True})
    positive, negative = condition_of(decoder), condition_of(decoder, seed=2)
    for name in (*SCHEDULERS, None):
        images = decoder.draw(
            positive,
            negative,
            scheduler=name,
            steps=4,
            guidance=3.0,
            latents=latents_of(2, side=16),
            size=(32, 32),
        )
        assert images.isfinite().all(), name


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    [
        (Sana, "ddpm", "flow matching, got 'ddpm'; known: dpm-solver++, flow-match-euler, unipc"),
        (Sana, "unipcc", "flow matching, got 'unipcc'; did you mean 'unipc'?"),
        (
            StableDiffusion,
            "flow-match-euler",
            "denoising over a noise schedule, got 'flow-match-euler'; known: ",
        ),
        (StableDiffusion, "dpm-solver+", "got 'dpm-solver+'; did you mean 'dpm-solver++'?"),
    ],
)
def test_a_scheduler_of_another_objective_is_refused(cls: Any, name: str, message: str) -> None:
    with pytest.raises(DreamkitError, match=re.escape(message)):
        tiny_decoder(cls).scheduler(name)


def test_sanas_context_has_the_scale_of_metaquery() -> None:
    assert tiny_decoder(Sana).spec.context_scale == math.sqrt(5.5)


@pytest.mark.parametrize(
    ("cls", "changes", "key", "message"),
    [
        (SD3, {"settings": {"image_size": 18}}, "image_size", r"multiple of 4 .*patch size of 2\), got 18"),
        (SD3, {"settings": {"image_size": 52}}, "image_size", "at most 48 pixels, .* got 52"),
        (
            SD3,
            {"transformer": {"sample_size": 7}},
            "transformer.sample_size",
            "got 7, which is 14 pixels; set",
        ),
        (SD3, {"vae": {"shift_factor": "none"}}, "vae.shift_factor", "expected a finite number, got 'none'"),
        (
            SD3,
            {"transformer": {"sample_size": 32}},
            "transformer.sample_size",
            "at most 48 pixels, .*64 pixels",
        ),
        (
            SD3,
            {"transformer": {"caption_projection_dim": 8}},
            "transformer.caption_projection_dim",
            "expected 16",
        ),
        (
            SD3,
            {"transformer": {"in_channels": 8}},
            "transformer.in_channels",
            "4 in_channels, .*got 8; use a",
        ),
        (Sana, {"settings": {"image_size": 17}}, "image_size", "positive multiple of 2 pixels, got 17"),
        (Sana, {"transformer": {"guidance_embeds": True}}, "transformer.guidance_embeds", "Sana Sprint"),
        (
            Sana,
            {"transformer": {"out_channels": 8}},
            "transformer.out_channels",
            "4 out_channels, .*got 8; use a",
        ),
        (Sana, {"scheduler": {"shift": 0}}, "scheduler.shift", "expected more than 0, got 0"),
        (
            Sana,
            {"scheduler": {"use_dynamic_shifting": True}},
            "scheduler.use_dynamic_shifting",
            "set a fixed shift",
        ),
        (
            Sana,
            {"scheduler": {**DPM, "prediction_type": "epsilon"}},
            "scheduler.prediction_type",
            r"expected 'flow_prediction' \(string\) for flow matching, got 'epsilon' \(string\)",
        ),
        (
            Sana,
            {"scheduler": {"_class_name": "DDPMScheduler"}},
            "scheduler._class_name",
            "expected a scheduler class for flow matching, got 'DDPMScheduler'; name another source, or one of ",
        ),
        (
            Sana,
            {"scheduler": {"_class_name": "FlowMatchHeunDiscreteScheduler"}},
            "scheduler._class_name",
            "Heun.*'; name another source, or one of .*FlowMatchEulerDiscreteScheduler",
        ),
        (
            Sana,
            {"scheduler": {**DPM, "use_karras_sigmas": True}},
            "scheduler.use_karras_sigmas",
            r"expected false with 'DPMSolverMultistepScheduler' in flow matching, got true \(boolean\)",
        ),
        (
            Sana,
            {"scheduler": {**UNIPC, "use_beta_sigmas": True}},
            "scheduler.use_beta_sigmas",
            "expected false with 'UniPCMultistepScheduler'",
        ),
        (Sana, {"scheduler": {"flowshift": 2}}, "scheduler.flowshift", "did you mean 'flow_shift'"),
    ],
)
def test_a_wrong_value_is_reported_at_its_key(
    cls: Any, changes: dict[str, Any], key: str, message: str
) -> None:
    for method in (cls.infer_spec, cls.from_config, cls.meta_modules):
        with pytest.raises(ConfigError) as caught:
            method(tiny_config(cls, **changes))
        ((actual_key, actual),) = caught.value.problems.items()
        assert actual_key in (key, f"config.{key}")
        assert re.search(message, actual), actual
