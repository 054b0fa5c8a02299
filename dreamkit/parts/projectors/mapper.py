"""A small encoder-decoder transformer with trained queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamkit.parts.projectors.blocks import DeepProjector, check_positive, head_count
from dreamkit.parts.specs import ProjectorSpec

EXPANSION = 4  # width of the feed-forward networks over that of the layers, as in GILL's published code


class Mapper(DeepProjector):
    """GILL's GILLMapper (arXiv 2305.17216, section 3.2): (N, T, in_dim) -> (N, tokens, out_dim).

    It is a linear layer, torch's pre-norm encoder-decoder transformer with trained queries as the decoder's input, and
    a linear layer. As in the published code, there is no dropout, and initial weights are torch's. The published code
    adds the input embeddings of the tokens to their hidden states; this projector reads hidden states alone.
    """

    @dataclass(frozen=True)
    class Config:
        """The recipe section of `mapper`. Defaults are GILL's.

        Attributes:
            tokens: number of output tokens; None is the number of input tokens.
            width: width of the transformer.
            depth: number of layers of the encoder, and of the decoder.
            heads: number of attention heads.

        Raises:
            ConfigError: a setting outside the bounds of `check_positive`, or `heads` does not divide `width`.
        """

        tokens: int | None = None
        width: int = 512
        depth: int = 4
        heads: int = 4

        def __post_init__(self) -> None:
            check_positive(self, "tokens", "width", "depth", "heads")
            head_count(self.width, self.heads)

    def __init__(self, config: Mapper.Config, spec: ProjectorSpec) -> None:
        super().__init__(config, spec)
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

    def forward(self, tokens: Tensor) -> Tensor:
        encoder, decoder = self.transformer.encoder, self.transformer.decoder
        memory = encoder.norm(self.run_layers(encoder.layers, self.in_layer(tokens)))
        queries = self.queries.expand(len(tokens), -1, -1)
        return self.out_layer(decoder.norm(self.run_layers(decoder.layers, queries, memory)))


def _encoder(config: Mapper.Config) -> nn.TransformerEncoder:
    """Build `nn.Transformer`'s default encoder without nested tensors: torch warns that pre-norm excludes them."""
    layer = nn.TransformerEncoderLayer(
        config.width, config.heads, EXPANSION * config.width, dropout=0.0, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(config.width), enable_nested_tensor=False)
