"""How an image decoder draws: from noise to latents, step by step, guided, and then to a picture.

Shape suffixes are those of `dreamkit.interfaces`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dreamkit.diffusion import Denoised, denoising_steps, unit_noise
from dreamkit.specs import Condition

if TYPE_CHECKING:
    from dreamkit.interfaces import ImageDecoder

Extras = Mapping[str, Tensor]  # what a decoder wants to know of each image besides its condition, (N, ...)
Generators = torch.Generator | Sequence[torch.Generator] | None


class Drawing:
    """What lets an `ImageDecoder` draw."""

    @torch.no_grad()
    def sample(
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
        """Draws images (N, 3, H, W) in [0, 1]; the arguments are those of `denoising`."""
        for done in self.denoising(
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
        return cast("ImageDecoder", self).decode(drawn)

    @torch.no_grad()
    def denoising(
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
        is one for the batch, or one an image. `latents` are the initial unit-variance noise, else drawn.

        Raises:
            ValueError: steps < 1, guidance without `negative`, a size the decoder cannot draw, or a bad scheduler.
        """
        decoder = cast("ImageDecoder", self)
        size = size or (decoder.spec.image_size, decoder.spec.image_size)
        shape = (condition.context.shape[0], *decoder.spec.latent_shape(size))
        extras = decoder.default_extras(shape[0], size) if extras is None else extras
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
                return decoder.denoise(noisy, timestep.expand(shape[0]), given, extras)
            pair = torch.cat([noisy, noisy])
            without, with_it = decoder.denoise(pair, timestep.expand(2 * shape[0]), given, extras).chunk(2)
            return without + guidance * (with_it - without)

        with decoder.constant(given):
            yield from denoising_steps(decoder.scheduler(scheduler), steps, noise, predict, generators)
