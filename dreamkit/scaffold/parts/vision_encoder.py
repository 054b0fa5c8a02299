"""A vision encoder: a small vision transformer (arXiv 2010.11929) without a class token.

N images, V vision tokens of an image, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from PIL.Image import Image as Picture, Resampling
from torch import Tensor, nn

from dreamkit import PartConfig, VisionEncoder, VisionSpec, to_rgb

from .weights import check_division, load_weights, read_sizes


@dataclass(frozen=True)
class Sizes:
    """The keys of `config`. `image_size` and `patch_size` are sides in pixels."""

    image_size: int = 32
    patch_size: int = 4
    dim: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check_division(self, patch_size="image_size", heads="dim")


class Block(nn.Module):
    """Self-attention, then a feed-forward network; the output of each is added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        # (N, V, 3 dim) -> queries, keys and values, each (N, heads, V, dim / heads)
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.norm2(tokens))))


class NewPart(VisionEncoder):
    """Patches become tokens, get position embeddings and pass through a transformer."""

    adapter_targets = ("qkv", "out", "up", "down")  # LoRA attaches to modules whose names end so

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """The part's section of a recipe. `config` takes the fields of `Sizes`; add your own settings here."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        sizes = read_sizes(Sizes, config)
        self.config, self.spec = config, self.infer_spec(config)
        self.patches = nn.Conv2d(3, sizes.dim, sizes.patch_size, stride=sizes.patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(self.spec.num_tokens, sizes.dim))
        self.blocks = nn.Sequential(*(Block(sizes.dim, sizes.heads) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.dim)

    @classmethod
    def infer_spec(cls, config: Config) -> VisionSpec:
        sizes = read_sizes(Sizes, config)
        side, tokens = sizes.image_size, (sizes.image_size // sizes.patch_size) ** 2
        return VisionSpec(image_size=side, num_tokens=tokens, dim=sizes.dim, resized_side=side)

    @classmethod
    def tiny_config(cls) -> Config:  # the part that the contract checks build
        return cls.Config(config={"image_size": 16, "dim": 16})

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(config)

    @classmethod
    def from_pretrained(cls, config: Config) -> Self:
        return load_weights(cls(config), config)

    def preprocess(self, pictures: Sequence[Picture]) -> Tensor:
        side = self.spec.image_size
        squares = [to_rgb(picture).resize((side, side), Resampling.BICUBIC) for picture in pictures]
        buffer = bytearray(b"".join(square.tobytes() for square in squares))
        pixels = torch.frombuffer(buffer, dtype=torch.uint8).view(-1, side, side, 3)
        return pixels.permute(0, 3, 1, 2) / 127.5 - 1

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        tokens = self.patches(pixels_NCHW).flatten(2).transpose(1, 2) + self.positions
        return self.norm(self.blocks(tokens))
