"""The sampling loop that every image decoder shares, over a scheduler of diffusers' form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Scheduler(Protocol):
    """What of a diffusers scheduler the loop uses.

    Where it has them, also `init_noise_sigma`, by which the initial noise is multiplied, and
    `scale_model_input(sample, timestep)`, which gives what the network sees: those of flow matching have neither.
    """

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None: ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any: ...


class Denoised(NamedTuple):
    """Denoising step number `step`, from 0, of `steps` is done; `latents` (N, c, h, w) are what it left."""

    step: int
    steps: int
    latents: Tensor


def unit_noise(
    shape: Sequence[int], generators: torch.Generator | Sequence[torch.Generator] | None, like: Tensor
) -> Tensor:
    """Unit-variance noise of `shape` (N, c, h, w) on `like`'s device, from one generator or one an image.

    Raises:
        ValueError: a number of generators that is not N.
    """
    source = _generators(generators, shape[0])
    if not isinstance(source, list):
        device = like.device if source is None else source.device
        return torch.randn(tuple(shape), generator=source, device=device, dtype=like.dtype).to(like.device)
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device, dtype=like.dtype) for g in source]
    return torch.stack([row.to(like.device) for row in rows])


def sample_latents(mean: Tensor, std: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
    """Latents (N, c, h, w) of a posterior of this mean and standard deviation; without one, the mean itself."""
    return mean if std is None else mean + std * unit_noise(mean.shape, generator, mean)


def _generators(
    generators: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> torch.Generator | list[torch.Generator] | None:
    """The generators in the form that diffusers takes: one, or a list of `count`."""
    if generators is None or isinstance(generators, torch.Generator):
        return generators
    if len(generators) != count:
        raise ValueError(f"{len(generators)} generators for {count} images; pass one, or one an image")
    return list(generators)


def denoising_steps(
    scheduler: Scheduler,
    steps: int,
    noise: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    generators: torch.Generator | Sequence[torch.Generator] | None,
) -> Iterator[Denoised]:
    """Goes from unit-variance `noise` (N, c, h, w) to clean latents, and yields each step.

    Some schedulers take more than the `steps` asked for.
    `predict(noisy, timestep)` is the guided prediction of the network at one timestep, a scalar tensor where
    `noise` is. The scheduler's own timesteps are on the CPU.

    Raises:
        ValueError: steps < 1, or a number of generators that is not N.
    """
    if steps < 1:
        raise ValueError(f"{steps} denoising steps, but at least 1 is needed")
    # A scheduler looks things up by its timestep: one on a GPU would be copied back for it in every step.
    scheduler.set_timesteps(steps, device="cpu")
    timesteps = scheduler.timesteps
    source = _generators(generators, noise.shape[0])
    # Only stochastic schedulers take generators, and not every one of them does.
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": source} if takes_generator and source is not None else {}
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    seen = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    for step, (timestep, told) in enumerate(zip(timesteps, timesteps.to(noise.device), strict=True)):
        prediction = predict(seen(latents, timestep), told)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
        yield Denoised(step, len(timesteps), latents)
