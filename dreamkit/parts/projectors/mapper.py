"""A small encoder-decoder transformer with learned queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from dreamkit.parts.projectors.blocks import DeepProjector, head_count, refuse_below_one
from dreamkit.parts.specs import ProjectorSpec

EXPANSION = 4  # of the feed-forward networks, as in GILL


class Mapper(DeepProjector):
    """GILL's GILLMapper (arXiv 2305.17216, section 3.2): (N, T, in_dim) -> (N, tokens, out_dim).

    A matrix, torch's encoder-decoder transformer, which norms first, with learned queries as its decoder's input, and a
    matrix; without dropout, and with torch's initial weights, as in the published code. There, the input embeddings of
    the tokens are added to their hidden states; here, the hidden states come alone.
    """

    @dataclass(frozen=True)
    class Config:
        """`tokens` that come out, as many as come in where it is None; `width` between the two matrices; `depth` in
        layers, of the encoder and of the decoder; `heads` of attention."""

        tokens: int | None = None
        width: int = 512
        depth: int = 4
        heads: int = 4

        def __post_init__(self) -> None:
            refuse_below_one(self, "tokens", "width", "depth", "heads")
            head_count(self.width, self.heads)

    def __init__(self, config: Mapper.Config, spec: ProjectorSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        width = config.width
        self.in_layer = nn.Linear(spec.in_dim, width)
        self.transformer = nn.Transformer(
            width,
            config.heads,
            num_decoder_layers=config.depth,
            dim_feedforward=EXPANSION * width,
            dropout=0.0,
            custom_encoder=_encoder(config),
            batch_first=True,
            norm_first=True,
        )
        self.queries = nn.Parameter(torch.randn(spec.out_tokens, width))
        self.out_layer = nn.Linear(width, spec.out_dim)

    @classmethod
    def tiny_config(cls) -> Mapper.Config:
        return cls.Config(width=16, depth=1, heads=2)

    @classmethod
    def infer_spec(cls, config: Mapper.Config, *, in_dim: int, in_tokens: int, out_dim: int) -> ProjectorSpec:
        tokens = in_tokens if config.tokens is None else config.tokens
        return ProjectorSpec(in_dim=in_dim, out_dim=out_dim, in_tokens=in_tokens, out_tokens=tokens)

    @classmethod
    def from_config(cls, config: Mapper.Config, spec: ProjectorSpec) -> Self:
        return cls(config, spec)

    def forward(self, tokens: Tensor) -> Tensor:
        encoder, decoder = self.transformer.encoder, self.transformer.decoder
        memory = encoder.norm(self.through(encoder.layers, self.in_layer(tokens)))
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out_layer(decoder.norm(self.through(decoder.layers, queries, memory)))


def _encoder(config: Mapper.Config) -> nn.TransformerEncoder:
    """As torch makes it by itself, but for nested tensors: it would warn that where norms come first it has none."""
    layer = nn.TransformerEncoderLayer(
        config.width, config.heads, EXPANSION * config.width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(config.width), enable_nested_tensor=False)
