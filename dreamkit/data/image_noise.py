"""The random numbers of a training step about the images to draw, as functions of the run's seed and the image.

M images, c x h x w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreamkit.data.seeds import generator, stream_seed

if TYPE_CHECKING:
    from dreamkit.parts.decoder import ImageDecoder


@dataclass(frozen=True)
class ImageNoise:
    """Fields of a `Batch` that hold the random numbers of images to draw.

    An image is the pair of its document's place in the run and its number among the document's images to draw. Its
    random numbers depend on `seed` and the image alone, not on the batch or on the process that makes it.

    Attributes:
        seed: seed of the run.
        decoder: image decoder, whose timesteps and shapes of latents are those of the fields.
    """

    seed: int
    decoder: ImageDecoder

    def fields(
        self, images: Sequence[tuple[int, int]], latent_shape: Sequence[int], condition_drop: float
    ) -> dict[str, Any]:
        """Return the fields of M images with latents of `latent_shape` (c, h, w), on the CPU and in float32.

        `condition_drop` is the probability of an image to be drawn unconditionally.
        """

        def stream(name: str) -> list[torch.Generator]:
            return [generator(self.seed, place, name, number) for place, number in images]

        def unit_noise(name: str) -> torch.Tensor:
            return torch.stack([torch.randn(*latent_shape, generator=each) for each in stream(name)])

        fields: dict[str, Any] = {
            "noise": unit_noise("noise"),
            "timesteps": torch.cat([self.decoder.timesteps(1, each) for each in stream("timestep")]),
        }
        if condition_drop:
            uniform_M = torch.cat([torch.rand(1, generator=each) for each in stream("condition")])
            fields["drop_M"] = uniform_M < condition_drop
        if self.decoder.has_posterior():
            fields["posterior_noise"] = unit_noise("latents")
        else:
            fields["encode_seeds"] = tuple(
                stream_seed(self.seed, place, "latents", number) for place, number in images
            )
        return fields
