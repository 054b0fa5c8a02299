"""The loss and the drawing loop that image decoders inherit, on a decoder small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler
from hypothesis import given, settings, strategies as st
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.sampling import denoise_latents, unit_noise
from dreamkit.parts.specs import Condition, DecoderSpec

# NumPy 2 warns of the way diffusers' schedulers convert tensors to arrays
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONTEXT_DIM, SIZE = 6, 8
SCHEDULERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler}


class Small(ImageDecoder):
    """Latents are 2 x 2 pixel means; its network is a convolution plus a matrix of the mean context."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = DecoderSpec(
            context_dim=CONTEXT_DIM, image_size=SIZE, latent_channels=3, latent_factor=2, size_multiple=4
        )
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.read = nn.Linear(CONTEXT_DIM, 3)
        self.schedule = DDPMScheduler(clip_sample=False)

    @classmethod
    def infer_spec(cls, config: Any) -> DecoderSpec:
        return cls().spec

    @classmethod
    def from_config(cls, config: Any) -> Self:
        return cls()

    @classmethod
    def from_pretrained(cls, config: Any) -> Self:
        return cls()

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        return {"shift": torch.full((count, 1), size[0] / 100)}

    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return nn.functional.avg_pool2d(targets_NCHW, 2)

    def decode(self, latents: Tensor) -> Tensor:
        # uses a parameter, as a trainable decoder does
        return (self.mix(nn.functional.interpolate(latents, scale_factor=2)) / 2 + 0.5).clamp(0, 1)

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(1000, (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.add_noise(latents, noise, timesteps_N), noise

    def denoise(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Mapping[str, Tensor]
    ) -> Tensor:
        context = (
            condition.context if condition.mask is None else condition.context * condition.mask[..., None]
        )
        shift = self.read(context.mean(1)) + extras["shift"]
        return self.mix(noisy) + shift[..., None, None] * (1 + timesteps_N[:, None, None, None] / 1000)

    def scheduler(self, name: str | None = None) -> Any:
        return SCHEDULERS[name or "ddim"].from_config(self.schedule.config)


@pytest.fixture
def decoder() -> Small:
    torch.manual_seed(0)
    return Small()


def condition(images: int, seed: int = 1, tokens: int = 4) -> Condition:
    return Condition(torch.randn(images, tokens, CONTEXT_DIM, generator=seeded(seed)))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=25)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=5), side=st.integers(1, 6))
def test_the_noise_of_an_image_depends_only_on_its_own_generator(seeds: list[int], side: int) -> None:
    like = torch.zeros(1)
    together = unit_noise((len(seeds), 3, side, side), [seeded(seed) for seed in seeds], like)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, unit_noise((1, 3, side, side), seeded(seed), like)[0])


def test_one_generator_samples_the_whole_batch() -> None:
    assert torch.equal(
        unit_noise((2, 3, 4, 4), seeded(5), torch.zeros(1)), torch.randn(2, 3, 4, 4, generator=seeded(5))
    )


@pytest.mark.parametrize("latents", [None, torch.zeros(2, 3, 4, 4)])
def test_a_wrong_number_of_generators_is_an_error(decoder: Small, latents: Tensor | None) -> None:
    with pytest.raises(ValueError, match="expected 2 generators for 2 images, got 3"):
        decoder.draw(
            condition(2), guidance=1.0, steps=1, generators=[seeded(n) for n in range(3)], latents=latents
        )


def test_the_loss_is_the_mean_squared_error_of_each_image(decoder: Small) -> None:
    latents, noise = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    timesteps, extras = torch.tensor([0, 500, 999]), {"shift": torch.zeros(3, 1)}
    loss = decoder.loss(latents, condition(3), extras, noise=noise, timesteps=timesteps)
    for row in range(3):
        one = slice(row, row + 1)
        noisy = decoder.schedule.add_noise(latents[one], noise[one], timesteps[one])
        prediction = decoder.denoise(noisy, timesteps[one], condition(3)[one], {"shift": torch.zeros(1, 1)})
        torch.testing.assert_close(loss[row], (prediction - noise[one]).square().mean())


def test_the_loss_samples_missing_noise_and_timesteps(decoder: Small) -> None:
    latents, extras = torch.randn(2, 3, 4, 4), {"shift": torch.zeros(2, 1)}
    losses = [decoder.loss(latents, condition(2), extras, generator=seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    generator = seeded(3)
    noise = torch.randn(2, 3, 4, 4, generator=generator)
    timesteps = decoder.timesteps(2, generator)
    assert torch.equal(
        losses[0], decoder.loss(latents, condition(2), extras, noise=noise, timesteps=timesteps)
    )


def test_the_loss_in_half_precision_is_float32(decoder: Small) -> None:
    decoder.bfloat16()
    latents = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    context = Condition(condition(2).context.bfloat16())
    extras = {"shift": torch.zeros(2, 1, dtype=torch.bfloat16)}
    timesteps = torch.tensor([10, 900])
    loss = decoder.loss(latents, context, extras, noise=torch.zeros_like(latents), timesteps=timesteps)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.5])
def test_draw_equals_a_hand_written_loop(decoder: Small, name: str, guidance: float) -> None:
    positive, negative = condition(2), condition(2, seed=2)
    drawn = decoder.draw(
        positive, negative, scheduler=name, steps=4, guidance=guidance, size=(8, 12), generators=seeded(7)
    )
    generator, scheduler = seeded(7), decoder.scheduler(name)
    scheduler.set_timesteps(4)
    extras = decoder.default_extras(2, (8, 12))
    options = {} if name == "unipc" else {"generator": generator}
    with torch.no_grad():
        latents = torch.randn(2, 3, 4, 6, generator=generator)
        for t in scheduler.timesteps:
            from_positive = decoder.denoise(latents, t.expand(2), positive, extras)
            from_negative = decoder.denoise(latents, t.expand(2), negative, extras)
            guided = from_negative + guidance * (from_positive - from_negative)
            latents = scheduler.step(guided, t, latents, **options).prev_sample
        expected = decoder.decode(latents)
    assert drawn.shape == (2, 3, 8, 12)
    torch.testing.assert_close(drawn, expected)


def test_guidance_1_ignores_the_negative_condition(decoder: Small) -> None:
    images = [
        decoder.draw(condition(2), negative, steps=3, guidance=1.0, generators=seeded(1))
        for negative in (None, condition(2, seed=8))
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", [list, tuple])
def test_an_image_is_the_same_alone_and_in_a_batch(decoder: Small, name: str, kind: type) -> None:
    positive, negative = condition(3), condition(3, seed=2)
    together = decoder.draw(
        positive,
        negative,
        scheduler=name,
        steps=4,
        guidance=2.0,
        generators=kind(seeded(n) for n in range(3)),
    )
    for row in range(3):
        one = slice(row, row + 1)
        alone = decoder.draw(
            positive[one],
            negative[one],
            scheduler=name,
            steps=4,
            guidance=2.0,
            generators=kind([seeded(row)]),
        )
        torch.testing.assert_close(alone, together[one])
    assert not torch.equal(together[0], together[1])


def test_on_step_gets_every_step(decoder: Small) -> None:
    calls: list[tuple[int, Tensor]] = []
    arguments: dict[str, Any] = {"steps": 3, "guidance": 1.0, "latents": torch.randn(1, 3, 4, 4)}
    image = decoder.draw(
        condition(1), on_step=lambda step, latents: calls.append((step, latents)), **arguments
    )
    assert [step for step, _ in calls] == [0, 1, 2]
    for (number, latents), step in zip(calls, decoder.draw_steps(condition(1), **arguments), strict=True):
        assert (step.step, step.steps) == (number, 3)
        assert torch.equal(latents, step.latents)
    with torch.no_grad():
        assert torch.equal(decoder.decode(calls[-1][1]), image)


def test_drawing_with_a_trainable_decoder_builds_no_graph(decoder: Small) -> None:
    context = Condition(condition(1).context.requires_grad_())
    assert not decoder.draw(context, steps=2, guidance=1.0).requires_grad


def test_a_mask_applies_to_both_conditions(decoder: Small) -> None:
    mask = torch.tensor([[1, 1, 0, 0]])
    arguments: dict[str, Any] = {"steps": 2, "guidance": 2.0, "latents": torch.randn(1, 3, 4, 4)}
    positive, negative = condition(1), condition(1, seed=2)
    masked = decoder.draw(Condition(positive.context, mask), Condition(negative.context, mask), **arguments)
    zeroed = decoder.draw(
        Condition(positive.context * mask[..., None]),
        Condition(negative.context * mask[..., None]),
        **arguments,
    )
    torch.testing.assert_close(masked, zeroed)
    assert not torch.allclose(masked, decoder.draw(positive, negative, **arguments))


@pytest.mark.parametrize("name", ["mask", "pooled"])
def test_conditions_join_only_if_both_have_the_same_tensors(name: str) -> None:
    tensor = {name: torch.ones(1, 4)}
    with pytest.raises(ValueError, match=f"expected a {name} tensor in both conditions or in neither"):
        Condition.cat(condition(1), Condition(condition(1).context, **tensor))
    both = Condition.cat(Condition(condition(1).context, **tensor), Condition(condition(2).context, **tensor))
    assert getattr(both, name).shape == (2, 4)
    assert both.context.shape == (3, 4, CONTEXT_DIM)
    assert getattr(both[:1], name).shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "at least 1 denoising step, got 0"),
        ({"guidance": 2.0}, "missing a negative condition for guidance 2.0"),
        ({"size": (8, 10)}, "multiples of 4"),
        ({"size": (0, 8)}, "multiples of 4"),
    ],
)
def test_invalid_arguments_of_draw_are_errors(
    decoder: Small, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.draw(condition(1), **{"guidance": 1.0, "steps": 1, **arguments})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_perfect_prediction_leads_to_the_clean_latents(name: str) -> None:
    clean, schedule = torch.randn(1, 3, 4, 4, generator=seeded(1)), DDPMScheduler(clip_sample=False)

    def predict_exactly(noisy: Tensor, timestep: Tensor) -> Tensor:
        alpha = schedule.alphas_cumprod[timestep]
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    scheduler = SCHEDULERS[name].from_config(schedule.config)
    *_, last = denoise_latents(
        scheduler, 20, torch.randn(1, 3, 4, 4, generator=seeded(2)), predict_exactly, seeded(3)
    )
    torch.testing.assert_close(last.latents, clean, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_denoising_reads_no_value_of_the_latents(name: str) -> None:
    """The values of meta tensors cannot be read; reading those on a GPU would stall it."""
    scheduler, noise = SCHEDULERS[name](), torch.empty(1, 3, 4, 4, device="meta")
    devices: list[torch.device] = []

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        devices.append(timestep.device)
        return noisy / 2

    *_, last = denoise_latents(scheduler, 4, noise, predict, None)
    assert {last.latents.device, *devices} == {noise.device} and len(devices) == 4


class RecordingDecoder(Small):
    """A decoder that records its cached conditions and the inputs of `denoise`."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[Condition, Mapping[str, Tensor]]] = []
        self.cached: list[Condition] = []

    @contextmanager
    def cache_condition(self, condition: Condition) -> Iterator[None]:
        self.cached.append(condition)
        try:
            yield
        finally:
            self.cached = [other for other in self.cached if other is not condition]

    def denoise(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Mapping[str, Tensor]
    ) -> Tensor:
        assert any(other is condition for other in self.cached)
        self.inputs.append((condition, extras))
        return super().denoise(noisy, timesteps_N, condition, extras)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_drawing_caches_one_condition(guidance: float) -> None:
    decoder, positive, negative = RecordingDecoder(), condition(2), condition(2, seed=2)
    drawings = [decoder.draw_steps(positive, negative, steps=3, guidance=guidance) for _ in range(3)]
    for drawing in drawings:
        next(drawing)
    assert len({id(cached) for cached in decoder.cached}) == 3
    for drawing in drawings[1:]:
        drawing.close()
    (cached,) = decoder.cached
    list(drawings[0])
    assert not decoder.cached
    conditions, extras = zip(*(decoder.inputs[step] for step in (0, 3, 4)), strict=True)
    assert all(one is cached for one in conditions) and all(one is extras[0] for one in extras)
    contexts = [positive.context] if guidance == 1 else [negative.context, positive.context]
    assert torch.equal(cached.context, torch.cat(contexts))
    assert len(extras[0]["shift"]) == len(cached.context)
