"""Stable Diffusion 1.5 and 2.1: a conditioned UNet on the latents of an autoencoder (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit import Condition, DecoderSpec, DreamkitError, ImageDecoder, PartConfig, SourceError
from dreamkit_diffusers import components
from dreamkit_diffusers.components import Components
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.schedulers import named_scheduler, own_scheduler


class StableDiffusion(ImageDecoder):
    """UNet, autoencoder and noise schedule of a folder in diffusers' layout; its text encoder is not used.

    The autoencoder is never trained: its latents are what the UNet's loss is measured in.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """`image_size`: side in pixels of targets and drawings; None: the UNet's own.

        `snr_gamma`: weights the loss by Min-SNR (arXiv 2303.09556, which proposes 5); None: all alike.
        `config`: {unet: {...}, vae: {...}, scheduler: {...}}, the values of diffusers' config files.
        """

        image_size: int | None = None
        snr_gamma: float | None = None

    # those of the UNet's transformers; the autoencoder's attention layers have the same last names
    adapter_targets = tuple(
        f"{attention}.{layer}"
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )

    def __init__(self, config: StableDiffusion.Config, parts: Components) -> None:
        super().__init__()
        self.spec = _spec(config, parts)
        self.unet = parts.unet
        self.vae = parts.vae.requires_grad_(False)
        self.schedule = parts.schedule
        self.schedule_config = parts.schedule_config
        self.snr_gamma = config.snr_gamma

    @classmethod
    def spec_from(cls, config: StableDiffusion.Config) -> DecoderSpec:
        return _spec(config, components.outline(config))

    @classmethod
    def from_config(cls, config: StableDiffusion.Config) -> Self:
        return cls(config, components.random(config))

    @classmethod
    def from_pretrained(cls, config: StableDiffusion.Config) -> Self:
        return cls(config, components.pretrained(config))

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """The UNet's: no gradient reaches the autoencoder."""
        return self.unet.parameters()

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()

    def preprocess(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.stack([square_pixels(picture, self.spec.image_size) for picture in pictures]), {}

    @torch.no_grad()
    def encode(self, targets_NCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        latents = self.vae.encode(targets_NCHW.to(self.vae.dtype)).latent_dist.sample(generator)
        return (latents - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents / self.vae.config.scaling_factor + self._shift
        images = self.vae.decode(latents.to(self.vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0

    def timesteps(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform over the schedule; on the generator's device, or else the UNet's."""
        device = self.unet.device if generator is None else generator.device
        return torch.randint(
            self.schedule.config.num_train_timesteps, (count,), generator=generator, device=device
        )

    def noisy(self, latents: Tensor, noise: Tensor, timesteps_N: Tensor) -> tuple[Tensor, Tensor]:
        # In float32: half precision rounds the least noisy timesteps to no noise at all. diffusers keeps its
        # table on the device that it was last used on, so that a training step copies nothing.
        clean, noise = latents.float(), noise.float()
        noisy = self.schedule.add_noise(clean, noise, timesteps_N).to(latents.dtype)
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return noisy, noise
        return noisy, clean if kind == "sample" else self.schedule.get_velocity(clean, noise, timesteps_N)

    def denoise(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Mapping[str, Tensor]
    ) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(
            noisy.to(dtype),
            timesteps_N,
            encoder_hidden_states=condition.context.to(dtype),
            encoder_attention_mask=condition.mask,
        ).sample

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh diffusers scheduler; None: of the class that the decoder's own config names."""
        if name is None:
            return own_scheduler(self.schedule_config)
        return named_scheduler(name, self.schedule_config)

    def loss(
        self,
        latents: Tensor,
        condition: Condition,
        extras: Mapping[str, Tensor],
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if timesteps is None:
            timesteps = self.timesteps(latents.shape[0], generator).to(latents.device)
        loss_N = super().loss(
            latents, condition, extras, noise=noise, timesteps=timesteps, generator=generator
        )
        return loss_N if self.snr_gamma is None else loss_N * self._min_snr_weights(timesteps, self.snr_gamma)

    def _min_snr_weights(self, timesteps_N: Tensor, gamma: float) -> Tensor:
        """(N,): min(SNR, gamma) weighs the error of the clean latents; here, that of what is predicted."""
        alphas_N = self.schedule.alphas_cumprod.to(timesteps_N.device)[timesteps_N]
        snr_N = alphas_N / (1 - alphas_N)
        kind = self.schedule.config.prediction_type
        if kind == "epsilon":
            return (gamma / snr_N).clamp(max=1)
        return snr_N.clamp(max=gamma) / (snr_N + 1 if kind == "v_prediction" else 1)


def _spec(config: StableDiffusion.Config, parts: Components) -> DecoderSpec:
    """The spec, once all is checked that the configs of the parts must have in common."""
    unet, vae = parts.unet.config, parts.vae.config
    _check(config, parts)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    image_size = unet.sample_size * factor if config.image_size is None else config.image_size
    spec = DecoderSpec(
        context_dim=unet.cross_attention_dim,
        image_size=image_size,
        latent_channels=vae.latent_channels,
        latent_factor=factor,
        # CLIP's text encoders end in a layer norm, whose output has unit scale
        context_scale=1.0,
        # the UNet brings its upsampled features to the size of its downsampled ones, whatever that is
        size_multiple=factor,
    )
    try:
        spec.latent_shape((image_size, image_size))
    except (TypeError, ValueError) as error:
        raise DreamkitError(f"{parts.where}: {error}") from error
    return spec


def _check(config: StableDiffusion.Config, parts: Components) -> None:
    unet, vae, where = parts.unet.config, parts.vae.config, parts.where
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if unet[key] is not None:
            raise SourceError(
                f"{where}: the UNet's {key} is {unet[key]!r}: it wants more conditions than a context (as "
                "SDXL's does), which 'stable-diffusion' does not give; use another image decoder for it"
            )
    for end in ("in_channels", "out_channels"):
        if unet[end] != vae.latent_channels:
            raise SourceError(
                f"{where}: the UNet's {end} is {unet[end]}, but the autoencoder's latents have "
                f"{vae.latent_channels} channels; use a UNet made for these latents"
            )
    if not isinstance(unet.cross_attention_dim, int):
        raise SourceError(
            f"{where}: the UNet's cross_attention_dim is {unet.cross_attention_dim}, but must be a number"
        )
    if config.image_size is None and not isinstance(unet.sample_size, int):
        raise SourceError(f"{where}: the UNet's sample_size is {unet.sample_size}; set image_size")
    for name, value in (("scaling_factor", vae.scaling_factor), ("shift_factor", vae.shift_factor or 0.0)):
        if not isinstance(value, int | float):
            raise SourceError(f"{where}: the autoencoder's {name} is {value!r}, but must be a number")
    if config.snr_gamma is not None and not config.snr_gamma > 0:
        raise DreamkitError(f"snr_gamma is {config.snr_gamma}, but must be positive")
