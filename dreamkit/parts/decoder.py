"""The interface of an image decoder, with the loss and the drawing loop that all image decoders share.

Shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.earlier_names import EarlierName
from dreamkit.parts.part import PretrainedPart
from dreamkit.parts.sampling import DrawStep, Scheduler, denoise_latents, sample_latents, unit_noise
from dreamkit.parts.specs import Condition, DecoderSpec

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Extras = Mapping[str, Tensor]
"""A decoder's input for each image besides its condition, by name: tensors (N, ...), such as the original size."""

Generators = torch.Generator | Sequence[torch.Generator] | None


class ImageDecoder(PretrainedPart):
    """A part that draws an image from a condition by diffusion or flow matching.

    It owns its training objective, its schedulers and the scale of its latents.

    Attributes:
        posterior_module: name of the submodule whose weights alone decide `posterior`; "" is the part itself. None,
            the default: the decoder has no `posterior`, and its latents cannot be cached.
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
        """Return training targets (N, 3, H, W) in [-1, 1] and extras (N, ...) of N PIL images, on the CPU.

        The images have any size and mode; `dreamkit.to_rgb` makes one upright RGB. Extras are, for example, the
        original size and the crop.
        """

    def float32_tensors(self) -> Iterable[Tensor]:
        """Return the tensors of the submodules in `spec.float32_modules`."""
        modules = [self.get_submodule(name) for name in self.spec.float32_modules]
        return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]

    def default_extras(self, count: int, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the extras (count, ...) to draw `count` images of `size` (height, width) in pixels.

        The default is an empty dict.
        """
        return {}

    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the mean and standard deviation (N, c, h, w) of the scaled latents of targets, without gradient.

        Targets are (N, 3, H, W) in [-1, 1]. The standard deviation is None if it is 0.

        Raises:
            NotImplementedError: the class defines neither this method nor its own `encode`.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has neither `posterior` nor its own `encode`")

    @classmethod
    def has_posterior(cls) -> bool:
        """Return True if the class defines `posterior`, from which training then samples latents.

        Otherwise training calls the class's own `encode`, with one image and one generator in each call.
        """
        return cls.posterior is not ImageDecoder.posterior

    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return scaled latents (N, c, h, w) of targets (N, 3, H, W) in [-1, 1], sampled from `posterior`."""
        return sample_latents(*self.posterior(targets_NCHW), generator)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (N, 3, H, W) in [0, 1] of scaled latents (N, c, h, w)."""

    @abstractmethod
    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample training timesteps (count,) from the distribution of the decoder's objective."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy latents at `timesteps_N`, and the target of the network's prediction, both (N, c, h, w).

        Both are linear in `latents` and `noise` (N, c, h, w). The target is, for example, the noise (arXiv 2006.11239),
        v (arXiv 2202.00512) or the flow's velocity (arXiv 2210.02747).
        """

    @abstractmethod
    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        """Compute the network's prediction (N, c, h, w) for noisy latents (N, c, h, w)."""

    def cache_condition(self, condition: Condition) -> AbstractContextManager[None]:
        """Return a context in which `denoise` may reuse values that it computes from `condition` alone.

        `denoise` reuses values only if its `Condition` *is* this object. The object's tensors and the part's weights
        stay unchanged within the context. Predictions, for this condition and any other, stay bitwise identical.
        Contexts may overlap and end in any order. The default reuses nothing.
        """
        return nullcontext()

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras
    ) -> Tensor | None:
        """Compute the prediction (N, c, h, w) with the library behind the part alone; None if there is no library.

        Tests compare it with that of `denoise`.
        """
        return None

    @abstractmethod
    def scheduler(self, name: str | None = None) -> Scheduler:
        """Return a new scheduler to draw with, by a name of `spec.schedulers`; None is the decoder's own.

        Raises:
            ValueError: an unknown scheduler, or one that does not fit the objective.
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
        """Compute the denoising loss (N,) of each image, in float32.

        It is the mean squared error over the elements of the target of `add_noise` (arXiv 2006.11239, equation 14).
        `latents` (N, c, h, w) are scaled. If `noise` (N, c, h, w) or `timesteps` (N,) is None, it is sampled from
        `generator`.
        """
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
        steps: int = 15,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        generators: Generators = None,
        latents: Tensor | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Draw images (N, 3, H, W) in [0, 1].

        `on_step(step, latents)` is called after each step. The other arguments, and the errors, are those of
        `draw_steps`.
        """
        for number, _, last_latents in self.draw_steps(
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
            if on_step is not None:
                on_step(number, last_latents)
        return self.decode(last_latents)

    @torch.no_grad()
    def draw_steps(
        self,
        condition: Condition,
        negative: Condition | None = None,
        extras: Extras | None = None,
        *,
        scheduler: str | None = None,
        steps: int = 15,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        generators: Generators = None,
        latents: Tensor | None = None,
    ) -> Iterator[DrawStep]:
        """Draw images step by step, and yield each step with its latents (N, c, h, w); `decode` takes the last ones.

        Noise, guidance and the scheduler's steps are in float32 or more: half precision would round the small changes
        of late steps away. `denoise` gets latents of the condition's dtype, and each step has them in it.

        Args:
            condition: condition of N images.
            negative: condition of N images to guide away from; needed unless `guidance` is 1.
            extras: extras (N, ...); None is `default_extras`.
            scheduler: a name of `spec.schedulers`; None is the decoder's own.
            steps: number of denoising steps; some schedulers run more.
            guidance: scale w of classifier-free guidance: negative + w (positive - negative). 1 draws from `condition`
                alone. diffusers counts it the same way; in arXiv 2207.12598, equation 6, the scale is w - 1.
            size: (height, width) in pixels; None is `spec.image_size` for both.
            generators: one for the batch or one per image, for all noise; None is torch's global generator.
            latents: initial unit-variance noise (N, c, h, w); None samples it from `generators`.

        Raises:
            ValueError: steps < 1, guidance without `negative`, a size that `spec` excludes, an unknown scheduler, or a
                number of generators that is neither 1 nor N.
        """
        size = size or (self.spec.image_size, self.spec.image_size)
        shape = (condition.context.shape[0], *self.spec.latent_shape(size))
        extras = self.default_extras(shape[0], size) if extras is None else extras
        like = condition.context
        exact = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
        noise = unit_noise(shape, generators, exact) if latents is None else latents.to(exact)
        extras = {name: extra.to(like.device) for name, extra in extras.items()}
        # A new object for `cache_condition`: the caller may draw from the same condition twice at once.
        network_condition = replace(condition)
        if guidance != 1.0:
            if negative is None:
                raise ValueError(
                    f"missing a negative condition for guidance {guidance}: pass one or set guidance to 1"
                )
            network_condition = Condition.cat(negative, condition)
            extras = {name: torch.cat([extra, extra]) for name, extra in extras.items()}

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            noisy = noisy.to(like.dtype)
            if guidance == 1.0:
                return self.denoise(noisy, timestep.expand(shape[0]), network_condition, extras).to(exact)
            both = torch.cat([noisy, noisy])
            prediction = self.denoise(both, timestep.expand(2 * shape[0]), network_condition, extras)
            from_negative, from_positive = prediction.to(exact).chunk(2)
            return from_negative + guidance * (from_positive - from_negative)

        with self.cache_condition(network_condition):
            for step in denoise_latents(self.scheduler(scheduler), steps, noise, predict, generators):
                yield step._replace(latents=step.latents.to(like.dtype))
