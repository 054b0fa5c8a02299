"""The interface of an image decoder, with the loss and the drawing loop that all of them share.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.earlier_names import EarlierName
from dreamkit.parts.part import PretrainedPart
from dreamkit.parts.precision import keeping_float32
from dreamkit.parts.sampling import Denoised, Scheduler, denoising_steps, sample_latents, unit_noise
from dreamkit.parts.specs import Condition, DecoderSpec

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Extras = Mapping[str, Tensor]  # what a decoder wants to know of each image besides its condition, (N, ...)
Generators = torch.Generator | Sequence[torch.Generator] | None


class ImageDecoder(PretrainedPart):
    """An image generator: it draws from a condition by diffusion or flow, and owns objective, schedulers and scales.

    `posterior_module` names the submodule that alone computes `posterior` ("": the part itself). None: no posterior.
    """

    spec: DecoderSpec
    posterior_module: ClassVar[str | None] = None

    latent_root = EarlierName("posterior_module")
    noisy = EarlierName("add_noise")
    constant = EarlierName("cache_condition")
    sample = EarlierName("draw")
    denoising = EarlierName("draw_steps")

    @abstractmethod
    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        """Any pictures -> targets (N, 3, H, W) in [-1, 1], and extras (N, ...) such as original size and crop."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.bfloat16()` and the like go through, also those of a model this is in."""
        modules = [self.get_submodule(name) for name in self.spec.float32_modules]
        return super()._apply(keeping_float32(modules, fn), recurse)

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """The extras (count, ...) to draw images of `size` (height, width) with."""
        return {}

    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Targets -> mean and standard deviation (None: it is 0) of their scaled latents, without gradient."""
        raise NotImplementedError(f"{type(self).__qualname__} has neither `posterior` nor its own `encode`")

    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets (N, 3, H, W) in [-1, 1] -> scaled latents, sampled from the posterior with noise from `generator`."""
        return sample_latents(*self.posterior(targets_NCHW), generator)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images (N, 3, H, W) in [0, 1]."""

    @abstractmethod
    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training timesteps (count,), random as the objective wants them."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents of the given timesteps, and what the network should predict from them."""

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        """The network's prediction for noisy latents (N, c, h, w)."""

    def cache_condition(self, condition: Condition) -> AbstractContextManager[None]:
        """Within it, `denoise` may keep what it computes from `condition` alone.

        That is from this very object, whose tensors stay as they are within, as do the part's weights. What is
        predicted, from it and from any other, is the same to the bit. Contexts may overlap. The default keeps nothing.
        """
        return nullcontext()

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras
    ) -> Tensor | None:
        """The prediction as the library behind the part computes it by itself; None: no library is behind it."""
        return None

    @abstractmethod
    def scheduler(self, name: str | None = None) -> Scheduler:
        """A fresh sampling scheduler by name (None: the decoder's own).

        Raises:
            ValueError: no such scheduler, or one that does not fit the objective.
        """

    def loss(
        self,
        latents: Tensor,
        condition: Condition,
        extras: Extras,
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The denoising loss (N,), one an image: mean squared error over the latent's elements, in float32."""
        if noise is None:
            noise = unit_noise(latents.shape, generator, latents)
        if timesteps is None:
            timesteps = self.timesteps(latents.shape[0], generator).to(latents.device)
        noisy, target = self.add_noise(latents, noise, timesteps)
        prediction = self.denoise(noisy, timesteps, condition, extras)
        return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)

    @torch.no_grad()
    def draw(
        self,
        condition: Condition,
        negative: Condition | None = None,
        extras: Extras | None = None,
        *,
        scheduler: str | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        generators: Generators = None,
        latents: Tensor | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draws images (N, 3, H, W) in [0, 1]; the arguments are those of `draw_steps`."""
        for done in self.draw_steps(
            condition,
            negative,
            extras,
            scheduler=scheduler,
            steps=steps,
            guidance=guidance,
            size=size,
            generators=generators,
            latents=latents,
        ):
            drawn = done.latents
            if on_step is not None:
                on_step(done.step, drawn)
        return self.decode(drawn)

    @torch.no_grad()
    def draw_steps(
        self,
        condition: Condition,
        negative: Condition | None = None,
        extras: Extras | None = None,
        *,
        scheduler: str | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        generators: Generators = None,
        latents: Tensor | None = None,
    ) -> Iterator[Denoised]:
        """Yields each step of drawing, its latents (N, c, h, w) with it; the last ones are what `decode` takes.

        `guidance` is the classifier-free guidance scale w of arXiv 2207.12598 as diffusers counts it: negative +
        w (positive - negative), so 1 draws from `condition` alone. `size` is (height, width) in pixels. `generators`
        is one for the batch, or one an image. `latents` are the initial unit-variance noise (None: of `generators`).

        Raises:
            ValueError: steps < 1, guidance without `negative`, a size the decoder cannot draw, or a bad scheduler.
        """
        size = size or (self.spec.image_size, self.spec.image_size)
        shape = (condition.context.shape[0], *self.spec.latent_shape(size))
        extras = self.default_extras(shape[0], size) if extras is None else extras
        like = condition.context
        noise = unit_noise(shape, generators, like) if latents is None else latents.to(like.device)
        extras = {name: extra.to(like.device) for name, extra in extras.items()}
        given = replace(condition)  # an object of this drawing's own: another from the same may be under way
        if guidance != 1.0:
            if negative is None:
                raise ValueError(
                    f"guidance {guidance} needs a negative condition; pass one, or set guidance to 1"
                )
            given = Condition.cat(negative, condition)
            extras = {name: torch.cat([extra, extra]) for name, extra in extras.items()}

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            if guidance == 1.0:
                return self.denoise(noisy, timestep.expand(shape[0]), given, extras)
            pair = torch.cat([noisy, noisy])
            without, with_it = self.denoise(pair, timestep.expand(2 * shape[0]), given, extras).chunk(2)
            return without + guidance * (with_it - without)

        with self.cache_condition(given):
            yield from denoising_steps(self.scheduler(scheduler), steps, noise, predict, generators)
