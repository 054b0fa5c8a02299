"""The decoder against diffusers' own pipeline, models and schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit import Condition, DreamkitError
from dreamkit_diffusers.stable_diffusion import StableDiffusion

# diffusers' schedulers turn tensors into arrays in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = ["ddpm", "ddim", "dpm-solver++", "unipc", "euler"]
KINDS = ["epsilon", "v_prediction", "sample"]
Make = Callable[..., StableDiffusion]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def condition(images: int, seed: int = 1, tokens: int = 5) -> Condition:
    return Condition(torch.randn(images, tokens, 12, generator=seeded(seed)))


def latents_of(images: int, seed: int = 3, side: int = 8) -> Tensor:
    return torch.randn(images, 4, side, side, generator=seeded(seed))


@pytest.mark.parametrize("name", [*SCHEDULERS, None])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sample_is_the_diffusers_pipeline(make: Make, name: str | None, kind: str) -> None:
    own = {"_class_name": "PNDMScheduler", "skip_prk_steps": True} if name is None else {}
    decoder = make(scheduler={"prediction_type": kind, **own})
    pipeline = StableDiffusionPipeline(
        vae=decoder.vae,
        text_encoder=None,
        tokenizer=None,
        unet=decoder.unet,
        scheduler=decoder.scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.prediction_type == kind
    positive, negative, latents = condition(2), condition(2, seed=2), latents_of(2)
    with torch.no_grad():
        expected = pipeline(
            prompt_embeds=positive.context,
            negative_prompt_embeds=negative.context,
            latents=latents,
            num_inference_steps=6,
            guidance_scale=3.0,
            generator=seeded(9),
            output_type="pt",
        ).images
    drawn = decoder.draw(
        positive, negative, scheduler=name, steps=6, guidance=3.0, latents=latents, generators=seeded(9)
    )
    assert drawn.shape == (2, 3, 16, 16)
    torch.testing.assert_close(drawn, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_image_alone_is_the_image_in_a_batch(decoder: StableDiffusion, name: str) -> None:
    positive, negative = condition(3), condition(3, seed=2)
    together = decoder.draw(
        positive, negative, scheduler=name, steps=4, guidance=2.0, generators=[seeded(n) for n in range(3)]
    )
    for row in range(3):
        one = slice(row, row + 1)
        alone = decoder.draw(
            positive[one], negative[one], scheduler=name, steps=4, guidance=2.0, generators=[seeded(row)]
        )
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance_one_is_no_guidance(decoder: StableDiffusion, name: str) -> None:
    arguments: dict[str, Any] = {"scheduler": name, "steps": 3, "guidance": 1.0}
    with_negative = decoder.draw(condition(1), condition(1, seed=2), generators=seeded(1), **arguments)
    assert torch.equal(with_negative, decoder.draw(condition(1), generators=seeded(1), **arguments))


def test_every_size_the_spec_allows_is_drawn(decoder: StableDiffusion) -> None:
    multiple = decoder.spec.size_multiple
    for size in [(multiple, 3 * multiple), (5 * multiple, 7 * multiple)]:
        assert decoder.draw(condition(1), steps=1, guidance=1.0, size=size).shape == (1, 3, *size)


@pytest.mark.parametrize("kind", KINDS)
def test_noisy_is_what_diffusers_trains_on(make: Make, kind: str) -> None:
    decoder = make(scheduler={"prediction_type": kind})
    clean, noise, timesteps = latents_of(3), latents_of(3, seed=4), torch.tensor([0, 499, 999])
    noisy, target = decoder.add_noise(clean, noise, timesteps)
    reference = DDPMScheduler.from_config(decoder.schedule_config)
    assert torch.equal(noisy, reference.add_noise(clean, noise, timesteps))
    wanted = {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": reference.get_velocity(clean, noise, timesteps),
    }
    assert torch.equal(target, wanted[kind])


def test_half_precision_still_adds_the_little_noise_of_the_first_timesteps(decoder: StableDiffusion) -> None:
    decoder.bfloat16()
    clean, noise = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16), latents_of(1).bfloat16()
    noisy, _ = decoder.add_noise(clean, noise, torch.tensor([0]))
    expected = (1 - decoder.schedule.alphas_cumprod[0]).sqrt() * noise.float()
    torch.testing.assert_close(noisy.float(), expected, atol=0, rtol=0.01)
    context = Condition(condition(1).context.bfloat16())
    assert decoder.loss(clean, context, {}, noise=noise, timesteps=torch.tensor([0])).isfinite().all()
    assert decoder.draw(context, steps=2, guidance=1.0).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_that_of_the_bare_models(make: Make, kind: str) -> None:
    decoder = make(scheduler={"prediction_type": kind})
    clean, noise, timesteps = latents_of(2), latents_of(2, seed=4), torch.tensor([3, 900])
    loss = decoder.loss(clean, condition(2), {}, noise=noise, timesteps=timesteps)
    noisy, target = decoder.add_noise(clean, noise, timesteps)
    guess = decoder.unet(noisy, timesteps, condition(2).context).sample
    torch.testing.assert_close(loss, (guess - target).square().mean((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_each_image(make: Make, kind: str) -> None:
    plain, weighted = (make(scheduler={"prediction_type": kind}, snr_gamma=gamma) for gamma in (None, 5.0))
    timesteps = torch.tensor([0, 200, 999])
    arguments: dict[str, Any] = {"noise": latents_of(3, seed=4), "timesteps": timesteps}
    before = plain.loss(latents_of(3), condition(3), {}, **arguments)
    after = weighted.loss(latents_of(3), condition(3), {}, **arguments)
    snr = compute_snr(plain.schedule, timesteps)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(3)}[kind]
    torch.testing.assert_close(after / before, snr.clamp(max=5.0) / divisor)


def test_timesteps_cover_the_schedule(make: Make) -> None:
    decoder = make(scheduler={"num_train_timesteps": 7})
    drawn = decoder.timesteps(500, seeded(0))
    assert drawn.dtype == torch.int64
    assert sorted(set(drawn.tolist())) == list(range(7))
    assert torch.equal(drawn, decoder.timesteps(500, seeded(0)))


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_the_autoencoders_scaled(make: Make, shift: float | None) -> None:
    decoder = make(vae={"scaling_factor": 0.5, "shift_factor": shift})
    targets = torch.rand(2, 3, 16, 16, generator=seeded(1)) * 2 - 1
    latents = decoder.encode(targets, seeded(2))
    with torch.no_grad():
        posterior = decoder.vae.encode(targets).latent_dist
        images = decoder.vae.decode(posterior.sample(seeded(2))).sample
    torch.testing.assert_close(latents, (posterior.sample(seeded(2)) - (shift or 0)) * 0.5)
    assert latents.shape[1:] == decoder.spec.latent_shape((16, 16))
    torch.testing.assert_close(decoder.decode(latents), (images / 2 + 0.5).clamp(0, 1))


def test_a_frozen_decoder_hands_the_gradient_to_the_condition(decoder: StableDiffusion) -> None:
    decoder.requires_grad_(False)
    context = condition(2).context.requires_grad_()
    decoder.loss(latents_of(2), Condition(context), {}, generator=seeded(1)).mean().backward()
    assert context.grad is not None
    assert (context.grad.abs().amax((1, 2)) > 0).all()
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_gradient_checkpointing_changes_no_gradient(decoder: StableDiffusion) -> None:
    gradients = []
    for _ in range(2):
        context = condition(2).context.requires_grad_()
        decoder.loss(latents_of(2), Condition(context), {}, generator=seeded(1)).mean().backward()
        gradients.append(context.grad)
        decoder.enable_gradient_checkpointing()
    assert decoder.unet.is_gradient_checkpointing
    torch.testing.assert_close(*gradients)


def test_trains_the_unet_alone(decoder: StableDiffusion) -> None:
    assert {id(p) for p in decoder.trainable_parameters()} == {id(p) for p in decoder.unet.parameters()}


def test_no_gradient_reaches_the_autoencoder(decoder: StableDiffusion) -> None:
    decoder.requires_grad_(True)
    assert not decoder.encode(torch.zeros(1, 3, 16, 16)).requires_grad


def test_a_masked_token_does_not_matter(decoder: StableDiffusion) -> None:
    timesteps, mask = torch.tensor([400]), torch.tensor([[True, True, True, False, False]])
    first = condition(1)
    second = Condition(torch.cat([first.context[:, :3], condition(1, seed=6).context[:, 3:]], dim=1))
    outputs = [
        decoder.denoise(latents_of(1), timesteps, Condition(c.context, m), {})
        for c, m in [(first, mask), (second, mask), (first, None), (Condition(first.context[:, :3]), None)]
    ]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[3])
    assert not torch.allclose(outputs[0], outputs[2])


def test_adapters_attach_to_the_unets_attention_alone(decoder: StableDiffusion) -> None:
    matched = [
        name
        for name, module in decoder.named_modules()
        if any(name.endswith(f".{target}") for target in decoder.adapter_targets)
    ]
    attention = [
        name for name, module in decoder.unet.named_modules() if type(module).__name__ == "Attention"
    ]
    assert attention
    assert len(matched) == 4 * len(attention)
    assert all(name.startswith("unet.") for name in matched)
    assert all(isinstance(decoder.get_submodule(name), torch.nn.Linear) for name in matched)


def test_state_dict_round_trip(make: Make) -> None:
    one, other = make(seed=0), make(seed=1)
    arguments: dict[str, Any] = {"noise": latents_of(1, seed=4), "timesteps": torch.tensor([500])}
    losses = [d.loss(latents_of(1), condition(1), {}, **arguments) for d in (one, other)]
    assert not torch.allclose(*losses)
    state = one.state_dict()
    assert {name.split(".")[0] for name in state} == {"unet", "vae"}
    other.load_state_dict(state, strict=True)
    assert torch.equal(losses[0], other.loss(latents_of(1), condition(1), {}, **arguments))


class Operators(TorchDispatchMode):
    """The names of the operators dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_training_step_reads_nothing_back_and_loops_over_no_images(decoder: StableDiffusion) -> None:
    counts = []
    for images in (2, 20):
        context, targets = condition(images).context.requires_grad_(), torch.zeros(images, 3, 16, 16)
        with Operators() as operators:
            decoder.loss(decoder.encode(targets), Condition(context), {}).mean().backward()
        decoder.zero_grad(set_to_none=True)
        counts.append(len(operators.names))
        assert "aten._local_scalar_dense.default" not in operators.names
    assert counts[0] == counts[1] > 0


def test_schedulers_are_fresh_and_keep_the_prediction_type(make: Make) -> None:
    decoder = make(scheduler={"prediction_type": "v_prediction"})
    for name in (*SCHEDULERS, None):
        first, second = decoder.scheduler(name), decoder.scheduler(name)
        assert first is not second
        assert type(first) is type(second)
        assert first.config.prediction_type == "v_prediction"
        assert first.config.beta_end == 0.012
    assert type(decoder.scheduler()) is DDPMScheduler


def test_an_unknown_scheduler_is_an_error_with_the_nearest_name(decoder: StableDiffusion) -> None:
    with pytest.raises(DreamkitError, match=r"no scheduler 'dpm-solver\+'; did you mean 'dpm-solver\+\+'"):
        decoder.scheduler("dpm-solver+")
    assert issubclass(DreamkitError, ValueError)
