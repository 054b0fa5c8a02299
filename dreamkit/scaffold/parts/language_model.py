"""A language model: a small causal transformer. `words` has its tokenizer, embedding and head.

B rows, T tokens of this call, S tokens in the cache including these T, D width.
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from dreamkit import LanguageSpec, NormWeights, PartConfig

from .blocks import EPS, Block
from .cache import Cache, CachedRows
from .weights import check_division, load_weights, read_sizes
from .words import STD, Words, tokenizer_of


@dataclass(frozen=True)
class Sizes:
    """The keys of `config`. `max_length` is in tokens."""

    max_length: int = 1024
    dim: int = 128
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        check_division(self, heads="dim")


class NewPart(CachedRows, Words):
    """A causal transformer between the embedding and the head of `Words`."""

    adapter_targets = ("qkv", "out", "up", "down")  # LoRA attaches to modules whose names end so

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """The part's section of a recipe. `config` takes the fields of `Sizes`; add your own settings here."""

    def __init__(self, config: Config) -> None:
        sizes = read_sizes(Sizes, config)
        super().__init__(tokenizer_of(config), sizes.dim)
        self.config, self.spec = config, self.infer_spec(config)
        self.positions = nn.Embedding(sizes.max_length, sizes.dim)
        self.blocks = nn.ModuleList(Block(f"block {n}", sizes.dim, sizes.heads) for n in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.dim, eps=EPS)
        nn.init.normal_(self.positions.weight, std=STD)

    @classmethod
    def infer_spec(cls, config: Config) -> LanguageSpec:
        sizes, tokenizer = read_sizes(Sizes, config), tokenizer_of(config)
        bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        return LanguageSpec(
            dim=sizes.dim,
            vocab_size=len(tokenizer),
            max_length=sizes.max_length,
            bos_id=bos,
            eos_ids=(eos,),
            pad_id=pad,
            reserved_tokens=tuple(tokenizer.convert_ids_to_tokens([bos, eos, pad])),
        )

    @classmethod
    def tiny_config(cls) -> Config:  # the part that the contract checks build
        return cls.Config(config={"dim": 16, "max_length": 64})

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(config)

    @classmethod
    def from_pretrained(cls, config: Config) -> Self:
        return load_weights(cls(config), config)

    def forward(
        self, embeds_BTD: Tensor, position_ids_BT: Tensor, segment_ids_BT: Tensor, cache: Cache | None = None
    ) -> Tensor:
        cache = Cache() if cache is None else cache
        positions_BS = cache.extend("positions", position_ids_BT)
        segments_BS = cache.extend("segments", segment_ids_BT)
        # A token attends to its own segment, up to its own position. Padding attends to padding, which keeps it finite.
        mask_BTS = segment_ids_BT[:, :, None] == segments_BS[:, None]
        mask_BTS &= position_ids_BT[:, :, None] >= positions_BS[:, None]
        hidden_BTD = embeds_BTD + self.positions(position_ids_BT)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, mask_BTS, cache)
        return hidden_BTD

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    @property
    def norm_weights(self) -> NormWeights:
        return NormWeights(self.norm.weight, EPS)
