"""An image decoder: rectified flow (arXiv 2209.03003) on pixels. `network` has the network that predicts the flow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import ImageOps
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit import Condition, DecoderSpec, Extras, ImageDecoder, PartConfig, to_rgb

from .network import Network
from .schedulers import SCHEDULERS, Euler, scheduler_of
from .weights import check_division, load_weights, read_sizes


@dataclass(frozen=True)
class Sizes:
    """The keys of `config`. `image_size` and `patch_size` are sides in pixels."""

    image_size: int = 32
    patch_size: int = 4
    dim: int = 64
    layers: int = 4
    heads: int = 4
    context_dim: int = 64

    def __post_init__(self) -> None:
        check_division(self, patch_size="image_size", heads="dim")


class NewPart(ImageDecoder):
    """A flow on the straight line from an image (time 0) to noise (time 1); drawing follows it backwards."""

    adapter_targets = ("to_q", "to_kv", "to_out")  # LoRA attaches to modules whose names end so
    posterior_module = ""  # the submodule that computes `posterior`, here the part; name your autoencoder

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """The part's section of a recipe. `config` takes the fields of `Sizes`; add your own settings here."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = read_sizes(Sizes, config)
        self.config, self.spec = config, self.infer_spec(config)
        self.network = Network(sizes.patch_size, sizes.dim, sizes.layers, sizes.heads, sizes.context_dim)

    @classmethod
    def infer_spec(cls, config: Config) -> DecoderSpec:
        sizes = read_sizes(Sizes, config)
        return DecoderSpec(
            context_dim=sizes.context_dim,
            image_size=sizes.image_size,
            latent_channels=3,  # the latents are the pixels themselves
            latent_factor=1,
            size_multiple=sizes.patch_size,
            schedulers=tuple(SCHEDULERS),
            resized_side=sizes.image_size,  # of `preprocess`
        )

    @classmethod
    def tiny_config(cls) -> Config:  # the part that the contract checks build
        return cls.Config(config={"image_size": 16, "dim": 16, "layers": 2, "context_dim": 12})

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(config)

    @classmethod
    def from_pretrained(cls, config: Config) -> Self:
        return load_weights(cls(config), config)

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        side = self.spec.image_size
        squares = b"".join(ImageOps.fit(to_rgb(picture), (side, side)).tobytes() for picture in pictures)
        pixels = torch.frombuffer(bytearray(squares), dtype=torch.uint8).view(-1, side, side, 3)
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1, {}

    def posterior(self, targets_NCHW: Tensor) -> tuple[Tensor, None]:
        return targets_NCHW, None

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        device = self.network.inlet.weight.device if generator is None else generator.device
        return 1 - torch.rand(count, generator=generator, device=device)  # in (0, 1]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        t = timesteps_N[:, None, None, None]
        return ((1 - t) * latents + t * noise).to(latents.dtype), noise - latents

    def denoise(self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Extras) -> Tensor:
        return self.network(noisy, timesteps_N, condition)

    def scheduler(self, name: str | None = None) -> Euler:
        return scheduler_of(name)
