"""Random noise and the denoising loop, shared by all image decoders. The scheduler has the form of diffusers' ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dreamkit.errors import count


class Scheduler(Protocol):
    """The members of a diffusers scheduler that drawing uses.

    Two more are optional; schedulers of flow matching have neither. `init_noise_sigma`: factor of the initial noise.
    `scale_model_input(sample, timestep)`: returns the network's input for these latents.
    """

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set `timesteps` (num_inference_steps,), in the order of drawing; some schedulers set more.

        Raises:
            ValueError: the scheduler does not support this number of steps.
        """

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        """Return the latents (N, c, h, w) after one step, as the first item of a tuple if `return_dict=False`.

        `model_output` is the network's prediction at `timestep`, a scalar of `timesteps`; `sample` are the latents.
        `generator` (one, or a list of N) is passed only if this method names it as an argument.
        """


class DrawStep(NamedTuple):
    """A completed denoising step.

    Attributes:
        step: number of this step, from 0.
        steps: number of all steps.
        latents: latents (N, c, h, w) after this step.
    """

    step: int
    steps: int
    latents: Tensor


def unit_noise(
    shape: Sequence[int], generators: torch.Generator | Sequence[torch.Generator] | None, like: Tensor
) -> Tensor:
    """Sample unit-variance noise of `shape` (N, c, h, w), with the device and dtype of `like`.

    Half precision gets the noise of float32, rounded: torch's generators draw other numbers for each dtype.
    `generators` is one for the batch, a sequence of one per image, or None for torch's global generator.

    Raises:
        ValueError: the number of generators is not N.
    """
    source, dtype = _generators(generators, shape[0]), torch.promote_types(like.dtype, torch.float32)
    if not isinstance(source, list):
        device = like.device if source is None else source.device
        return torch.randn(tuple(shape), generator=source, device=device, dtype=dtype).to(like)
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device, dtype=dtype) for g in source]
    return torch.stack([row.to(like) for row in rows])


def sample_latents(
    mean: Tensor,
    std: Tensor | None,
    generator: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
) -> Tensor:
    """Sample latents (N, c, h, w) from a normal posterior; return `mean` if `std` is None.

    `noise` (N, c, h, w) has unit variance and any dtype; None samples it from `generator`.

    Source: the reparameterization of arXiv 1312.6114, section 2.4.
    """
    if std is None:
        return mean
    return mean + std * (unit_noise(mean.shape, generator, mean) if noise is None else noise.to(mean.dtype))


def _generators(
    generators: torch.Generator | Sequence[torch.Generator] | None, images: int
) -> torch.Generator | list[torch.Generator] | None:
    """Return the generators in diffusers' form: one, or a list of one for each of `images`."""
    if generators is None or isinstance(generators, torch.Generator):
        return generators
    if len(generators) != images:
        raise ValueError(
            f"expected {count(images, 'generator')} for {count(images, 'image')}, got {len(generators)}; "
            "pass one per image, or one"
        )
    return list(generators)


def denoise_latents(
    scheduler: Scheduler,
    steps: int,
    noise: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    generators: torch.Generator | Sequence[torch.Generator] | None,
) -> Iterator[DrawStep]:
    """Denoise unit-variance `noise` (N, c, h, w) to clean latents; yield each step.

    Some schedulers run more than `steps` steps. `predict(noisy, timestep)` returns the network's guided prediction;
    `timestep` is a scalar tensor on the device of `noise`. The scheduler's own timesteps are on the CPU.

    Raises:
        ValueError: steps < 1, or the number of generators is not N.
    """
    if steps < 1:
        raise ValueError(f"expected at least 1 denoising step, got {steps}")
    # Schedulers use the timestep as an index: on a GPU, every step would copy it back to the host.
    scheduler.set_timesteps(steps, device="cpu")
    timesteps = scheduler.timesteps
    source = _generators(generators, noise.shape[0])
    # Only stochastic schedulers take a generator, and not all of these do.
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": source} if takes_generator and source is not None else {}
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scale_input = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    for step, (timestep, on_device) in enumerate(zip(timesteps, timesteps.to(noise.device), strict=True)):
        prediction = predict(scale_input(latents, timestep), on_device)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        yield DrawStep(step, len(timesteps), latents)
