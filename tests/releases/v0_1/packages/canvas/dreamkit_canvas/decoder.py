"""Rectified flow (arXiv 2209.03003) in latents. N images, D width, Q' tokens of context, P pooled width."""

import json
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import ImageOps
from safetensors.torch import load_file
from torch import nn

from dreamkit import (
    Condition,
    ConfigError,
    DecoderSpec,
    Extras,
    ImageDecoder,
    PartConfig,
    Scheduler,
    SourceError,
    locate,
    to_rgb,
)

from .flow import SCHEDULERS, scheduler_of

SIZES = {"image_size": 16, "latent_channels": 4, "dim": 16, "layers": 2, "context_dim": 12, "pooled_dim": 8}
FACTOR = 2  # pixels to a latent


class Autoencoder(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inwards = nn.Conv2d(3, 2 * channels, FACTOR, FACTOR)
        self.outwards = nn.ConvTranspose2d(channels, 3, FACTOR, FACTOR)


class Block(nn.Module):
    def __init__(self, dim, context_dim):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(1, dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.to_q, self.to_kv = nn.Linear(dim, dim), nn.Linear(context_dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, hidden_NDhw, about_ND, k, v, mask):
        hidden_NDhw = hidden_NDhw + self.conv(
            nn.functional.silu(self.norm(hidden_NDhw) + about_ND[..., None, None])
        )
        q = self.to_q(hidden_NDhw.flatten(2).transpose(1, 2))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return hidden_NDhw + self.to_out(seen).transpose(1, 2).unflatten(2, hidden_NDhw.shape[2:])


class Network(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        dim, channels = sizes["dim"], sizes["latent_channels"]
        self.inlet, self.outlet = nn.Conv2d(channels, dim, 1), nn.Conv2d(dim, channels, 1)
        self.time, self.pooled, self.size = (
            nn.Linear(8, dim),
            nn.Linear(sizes["pooled_dim"], dim),
            nn.Linear(2, dim),
        )
        self.blocks = nn.ModuleList(Block(dim, sizes["context_dim"]) for _ in range(sizes["layers"]))

    def keys_and_values(self, context):
        return [block.to_kv(context).chunk(2, dim=2) for block in self.blocks]

    def forward(self, noisy, timesteps_N, condition, extras, keys_and_values):
        dtype = self.inlet.weight.dtype
        waves = torch.cos(torch.pi * timesteps_N[:, None] * torch.arange(8, device=noisy.device)).to(dtype)
        about_ND = self.time(waves) + self.pooled(condition.pooled.to(dtype))
        about_ND = about_ND + self.size(extras["original_size"].to(dtype) / 16)
        mask = None if condition.mask is None else condition.mask[:, None].bool()
        hidden = self.inlet(noisy.to(dtype))
        for block, (k, v) in zip(self.blocks, keys_and_values, strict=True):
            hidden = block(hidden, about_ND, k, v, mask)
        return self.outlet(nn.functional.silu(hidden))


class Canvas(ImageDecoder):
    adapter_targets = ("to_q", "to_kv", "to_out")
    adapter_root = "network"
    latent_root = "autoencoder"

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """`spread`: the standard deviation of a picture's latents around their mean."""

        spread: float = 0.1

        def __post_init__(self):
            if self.spread < 0:
                raise ConfigError({"spread": f"{self.spread} found, but 0 or more is wanted"})

    def __init__(self, config):
        super().__init__()
        sizes = sizes_of(config)
        self.config, self.spec, self.kept = config, self.spec_from(config), []
        self.autoencoder = Autoencoder(sizes["latent_channels"])
        self.network = Network(sizes)

    @classmethod
    def spec_from(cls, config):
        sizes = sizes_of(config)
        return DecoderSpec(
            context_dim=sizes["context_dim"],
            image_size=sizes["image_size"],
            latent_channels=sizes["latent_channels"],
            latent_factor=FACTOR,
            context_scale=0.5,
            pooled_dim=sizes["pooled_dim"],
            size_multiple=FACTOR,
            schedulers=tuple(SCHEDULERS),
            float32_modules=("autoencoder",),
            objective="flow matching",
        )

    @classmethod
    def miniature(cls):
        return cls.Config(config={})

    @classmethod
    def outline(cls, config):
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def from_config(cls, config):
        return cls(config)

    @classmethod
    def from_pretrained(cls, config):
        file = locate(config.pretrained, ["config.json", "model.safetensors"]) / "model.safetensors"
        decoder = cls(config)
        try:
            decoder.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise SourceError(f"{file} is not of this decoder: {error}") from error
        return decoder

    def trainable_parameters(self):
        return self.network.parameters()

    def preprocess(self, pictures):
        side = self.spec.image_size
        squares = b"".join(ImageOps.fit(to_rgb(picture), (side, side)).tobytes() for picture in pictures)
        pixels = torch.frombuffer(bytearray(squares), dtype=torch.uint8).view(-1, side, side, 3)
        sizes = torch.tensor([[picture.height, picture.width] for picture in pictures]).clamp(max=64)
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1, {"original_size": sizes.float()}

    def default_extras(self, count, size):
        return {"original_size": torch.tensor([size] * count).float()}

    @torch.no_grad()
    def posterior(self, targets_NCHW):
        with torch.autocast(targets_NCHW.device.type, enabled=False):
            mean, log_std = self.autoencoder.inwards(
                targets_NCHW.to(self.autoencoder.inwards.weight.dtype)
            ).chunk(2, 1)
        return mean, self.config.spread * log_std.tanh().exp()

    def decode(self, latents):
        with torch.autocast(latents.device.type, enabled=False):
            images = self.autoencoder.outwards(latents.to(self.autoencoder.outwards.weight.dtype))
        return (images / 2 + 0.5).clamp(0, 1)

    def timesteps(self, count, generator=None):
        device = self.network.inlet.weight.device if generator is None else generator.device
        return torch.rand(count, generator=generator, device=device).clamp(min=1e-3)

    def noisy(self, latents, noise, timesteps_N):
        t = timesteps_N.to(latents.dtype)[:, None, None, None]
        return (1 - t) * latents + t * noise, noise - latents

    @contextmanager
    def constant(self, condition: Condition):
        entry = [condition, None]
        self.kept.append(entry)
        try:
            yield
        finally:
            self.kept[:] = [other for other in self.kept if other is not entry]

    def denoise(self, noisy, timesteps_N, condition: Condition, extras: Extras):
        entry = next((kept for kept in self.kept if kept[0] is condition), [condition, None])
        keys_and_values = entry[1]
        if keys_and_values is None or torch.is_grad_enabled():
            dtype = self.network.inlet.weight.dtype
            keys_and_values = self.network.keys_and_values(condition.context.to(dtype))
        if not torch.is_grad_enabled():
            entry[1] = keys_and_values
        return self.network(noisy, timesteps_N, condition, extras, keys_and_values)

    def scheduler(self, name=None) -> Scheduler:
        return scheduler_of(name)


def sizes_of(config):
    if config.pretrained is None:
        given, refusal = config.config, ConfigError
    else:
        folder = locate(config.pretrained, ["config.json"], weights=config.is_local)
        given, refusal = (
            json.loads((folder / "config.json").read_text()),
            lambda found: SourceError(str(found)),
        )
    if unknown := given.keys() - SIZES.keys():
        raise refusal(
            {f"config.{key}": f"unknown; the sizes are {', '.join(SIZES)}" for key in sorted(unknown)}
        )
    sizes = SIZES | given
    if sizes["image_size"] % FACTOR:
        raise refusal(
            {"config.image_size": f"{sizes['image_size']} found, but a multiple of {FACTOR} is wanted"}
        )
    return sizes
