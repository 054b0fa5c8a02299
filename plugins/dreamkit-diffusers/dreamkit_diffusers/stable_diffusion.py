"""Stable Diffusion 1.5 and 2.1: a conditioned UNet on the latents of an autoencoder (arXiv 2112.10752)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL.Image import Image as Picture
from torch import Tensor, nn

from dreamkit import Condition, DecoderSpec, ImageDecoder, PartConfig, SourceError
from dreamkit_diffusers import components
from dreamkit_diffusers.components import Components, Described, is_count
from dreamkit_diffusers.pixels import square_pixels
from dreamkit_diffusers.schedulers import SCHEDULERS, named_scheduler, own_scheduler


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

    def __init__(self, config: StableDiffusion.Config, spec: DecoderSpec, parts: Components) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.unet = parts.unet
        self.vae = parts.vae.requires_grad_(False)
        self.schedule = parts.schedule
        self.schedule_config = parts.schedule_config
        self.snr_gamma = config.snr_gamma

    @classmethod
    def miniature(cls) -> StableDiffusion.Config:
        unet = {
            "sample_size": 8,
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 12,
        }
        vae = {
            "block_out_channels": [4, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "norm_num_groups": 2,
        }
        schedule = {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "steps_offset": 1,
        }
        return cls.Config(config={"unet": unet, "vae": vae, "scheduler": schedule})

    @classmethod
    def spec_from(cls, config: StableDiffusion.Config) -> DecoderSpec:
        return _spec(config, components.described(config, weights=config.is_local))

    @classmethod
    def outline(cls, config: StableDiffusion.Config) -> Self:
        found = components.described(config)
        return cls(config, _spec(config, found), components.random(found, "meta"))

    @classmethod
    def from_config(cls, config: StableDiffusion.Config) -> Self:
        found = components.described(config)
        return cls(config, _spec(config, found), components.random(found))

    @classmethod
    def from_pretrained(cls, config: StableDiffusion.Config) -> Self:
        if config.pretrained is None:
            raise SourceError("there are no weights to load without it; name a folder or a hub model")
        found = components.described(config, weights=True)
        return cls(config, _spec(config, found), components.pretrained(found))

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

    def library_forward(
        self, noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Mapping[str, Tensor]
    ) -> Tensor:
        output = self.unet(noisy, timesteps_N, condition.context, encoder_attention_mask=condition.mask)
        return output.sample

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


def _spec(config: StableDiffusion.Config, found: Described) -> DecoderSpec:
    """The spec, once all is checked that the configs of the parts must have in common.

    Raises:
        ConfigError: all that is wrong with the section.
    """
    unet, vae = found.values["unet"], found.values["vae"]
    _check_values(found, unet, vae)
    blocks = vae["block_out_channels"]
    factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list | tuple) and blocks else 1
    image_size = config.image_size
    if image_size is None and is_count(unet["sample_size"]):
        image_size = unet["sample_size"] * factor
    elif image_size is None:
        found.problem(
            "unet.sample_size", f"{unet['sample_size']!r} found, which is no number; set image_size"
        )
    elif image_size < 1 or image_size % factor:
        said = f"{image_size} found, but a positive multiple of {factor} pixels is wanted"
        found.problems["image_size"] = said
    if config.snr_gamma is not None and not config.snr_gamma > 0:
        found.problems["snr_gamma"] = f"{config.snr_gamma} found, but a positive number is wanted"
    found.raise_any()
    assert image_size is not None, "what has no size is a problem"
    return DecoderSpec(
        context_dim=unet["cross_attention_dim"],
        image_size=image_size,
        latent_channels=vae["latent_channels"],
        latent_factor=factor,
        # CLIP's text encoders end in a layer norm, whose output has unit scale
        context_scale=1.0,
        # the UNet brings its upsampled features to the size of its downsampled ones, whatever that is
        size_multiple=factor,
        schedulers=tuple(SCHEDULERS),
    )


def _check_values(found: Described, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    for key in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
        if unet[key] is not None:
            found.problem(
                f"unet.{key}",
                f"{unet[key]!r} found: it wants more conditions than a context (as SDXL's does), which "
                "'stable-diffusion' does not give; use another image decoder for it",
            )
    # told of the one that was set
    is_vaes = "latent_channels" in found.given["vae"] and "in_channels" not in found.given["unet"]
    for end in ("in_channels", "out_channels"):
        if unet[end] != vae["latent_channels"]:
            found.problem(
                "vae.latent_channels" if is_vaes else f"unet.{end}",
                f"the UNet's {end} is {unet[end]}, but the autoencoder's latents have "
                f"{vae['latent_channels']} channels; use a UNet made for these latents",
            )
    scale, shift = vae["scaling_factor"], vae["shift_factor"]
    if not _is_finite(scale) or scale <= 0:
        found.problem("vae.scaling_factor", f"{scale!r} found, but a positive number is wanted")
    if shift is not None and not _is_finite(shift):
        found.problem("vae.shift_factor", f"{shift!r} found, but a number or null is wanted")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
