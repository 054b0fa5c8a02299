"""Patches become tokens, which are mixed: along the picture, then along their width (arXiv 2105.01601)."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import torch
from PIL.Image import Resampling
from safetensors.torch import load_file, save_file
from torch import nn

from dreamkit import (
    ConfigError,
    PoolingConfig,
    SourceError,
    VisionEncoder,
    VisionSpec,
    did_you_mean,
    locate,
    to_rgb,
)


@dataclass(frozen=True)
class Sizes:
    image_size: int = 16
    patch_size: int = 4
    dim: int = 16
    layers: int = 2

    @property
    def grid(self) -> tuple[int, int]:
        return (self.image_size // self.patch_size,) * 2


class Mixer(nn.Module):
    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.along, self.up, self.down = (
            nn.Linear(tokens, tokens),
            nn.Linear(dim, 2 * dim),
            nn.Linear(2 * dim, dim),
        )

    def forward(self, tokens):
        tokens = tokens + self.along(self.norm1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.down(nn.functional.silu(self.up(self.norm2(tokens))))


class Patchwork(VisionEncoder):
    adapter_targets = ("up", "down")

    @dataclass(frozen=True, kw_only=True)
    class Config(PoolingConfig):
        """`resample`: how a picture is brought to the encoder's size."""

        resample: Literal["nearest", "bicubic"] = "bicubic"

    def __init__(self, config: Config):
        super().__init__()
        sizes = sizes_of(config)
        self.config, self.spec, self.grid = config, self.spec_from(config), sizes.grid
        tokens = self.grid[0] * self.grid[1]
        self.patches = nn.Conv2d(3, sizes.dim, sizes.patch_size, sizes.patch_size)
        self.mixers = nn.Sequential(*(Mixer(tokens, sizes.dim) for _ in range(sizes.layers)))

    @classmethod
    def spec_from(cls, config: Config) -> VisionSpec:
        sizes = sizes_of(config)
        num_tokens, dim = config.pooled_shape(sizes.grid, sizes.dim)
        return VisionSpec(image_size=sizes.image_size, num_tokens=num_tokens, dim=dim)

    @classmethod
    def miniature(cls) -> Config:
        return cls.Config(config={"dim": 8}, pool=2)

    @classmethod
    def outline(cls, config: Config) -> nn.Module:
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(config)

    @classmethod
    def from_pretrained(cls, config: Config) -> Self:
        file = locate(config.pretrained, ["config.json", "model.safetensors"]) / "model.safetensors"
        encoder = cls(config)
        try:
            encoder.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise SourceError(f"{file} is not of this encoder: {error}") from error
        return encoder

    def save(self, folder: Path) -> None:
        """Writes what `from_pretrained` reads."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config.config))
        save_file(self.state_dict(), folder / "model.safetensors")

    def preprocess(self, pictures):
        side, how = self.spec.image_size, Resampling[self.config.resample.upper()]
        squares = b"".join(to_rgb(picture).resize((side, side), how).tobytes() for picture in pictures)
        pixels = torch.frombuffer(bytearray(squares), dtype=torch.uint8).view(-1, side, side, 3)
        return pixels.permute(0, 3, 1, 2) / 255 - 0.5

    def forward(self, pixels_NCHW):
        patches = self.patches(pixels_NCHW.to(self.patches.weight.dtype))
        tokens = self.mixers(patches.flatten(2).transpose(1, 2))
        return self.config.pooled(tokens, self.grid)


def sizes_of(config: PoolingConfig) -> Sizes:
    """Raises ConfigError, or SourceError where it is the folder's config.json that is wrong."""
    given = config.config
    if config.pretrained is not None:
        folder = locate(config.pretrained, ["config.json"], weights=config.is_local)
        given = json.loads((folder / "config.json").read_text())
    known = [field.name for field in fields(Sizes)]
    problems = {f"config.{key}": did_you_mean(key, known) for key in given if key not in known}
    if problems:
        raise ConfigError(problems) if config.pretrained is None else SourceError(f"config.json: {problems}")
    sizes = Sizes(**given)
    if sizes.image_size % sizes.patch_size:
        raise ConfigError(
            {"config.patch_size": f"{sizes.patch_size} does not divide {sizes.image_size} pixels"}
        )
    return sizes
