"""A causal transformer. B rows, T tokens of this call, S tokens seen, D width."""

import json
from dataclasses import dataclass
from math import sqrt

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import nn

from dreamkit import (
    ChatTemplate,
    ConfigError,
    Embedding,
    Head,
    LanguageModel,
    LanguageSpec,
    NormWeights,
    PartConfig,
    SourceError,
    locate,
)

from .words import tokenizer_of

SIZES = {"dim": 32, "layers": 2, "heads": 2, "max_length": 256}
EPS = 1e-6


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, EPS), nn.RMSNorm(dim, EPS)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, hidden_BTD, mask_BTS, seen):
        q, k, v = self.qkv(self.norm1(hidden_BTD)).unflatten(2, (3, self.heads, -1)).unbind(2)
        k, v = seen("k", k), seen("v", v)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None])
        hidden_BTD = hidden_BTD + self.out(found.transpose(1, 2).flatten(2))
        return hidden_BTD + self.down(nn.functional.gelu(self.up(self.norm2(hidden_BTD))))


class Scribe(LanguageModel):
    adapter_targets = ("qkv", "out", "up", "down")

    @dataclass(frozen=True, kw_only=True)
    class Config(PartConfig):
        """`soft_cap`: logits never leave (-soft_cap, soft_cap); null leaves them alone."""

        soft_cap: float | None = 30.0

        def __post_init__(self):
            if self.soft_cap is not None and self.soft_cap <= 0:
                raise ConfigError({"soft_cap": f"{self.soft_cap} found, but more than 0 is wanted"})

    def __init__(self, config):
        super().__init__()
        sizes = sizes_of(config)
        self.config, self.spec, self.tokenizer = config, self.spec_from(config), tokenizer_of(config)
        dim, vocabulary = sizes["dim"], len(self.tokenizer)
        self.chat = ChatTemplate(
            user=("Q: ", "\n"),
            assistant=("A: ", self.tokenizer.eos_token),
            system=("", "\n"),
            default_system="Go on.",
        )
        self.table, self.to_logits = nn.Embedding(vocabulary, dim), nn.Linear(dim, vocabulary)
        nn.init.normal_(self.table.weight, std=1 / sqrt(dim))
        self.places = nn.Embedding(sizes["max_length"], dim)
        self.blocks = nn.ModuleList(Block(dim, sizes["heads"]) for _ in range(sizes["layers"]))
        self.offset = nn.Parameter(torch.zeros(dim))  # of the norm's weights from 1, as Gemma has them
        self.new_rows = self.new_head = None
        self.register_buffer("scale", torch.tensor(sqrt(dim)))

    @classmethod
    def spec_from(cls, config):
        sizes, tokenizer = sizes_of(config), tokenizer_of(config)
        return LanguageSpec(
            dim=sizes["dim"],
            vocab_size=len(tokenizer),
            max_length=sizes["max_length"],
            bos_id=tokenizer.bos_token_id,
            eos_ids=(tokenizer.eos_token_id,),
            pad_id=tokenizer.pad_token_id,
            reserved_tokens=(tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token),
        )

    @classmethod
    def miniature(cls):
        return cls.Config(config={"dim": 16, "max_length": 64})

    @classmethod
    def from_config(cls, config):
        return cls(config)

    @classmethod
    def from_pretrained(cls, config):
        file = locate(config.pretrained, ["config.json", "model.safetensors"]) / "model.safetensors"
        model = cls(config)
        try:
            model.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise SourceError(f"{file} is not of this model: {error}") from error
        return model

    def tokenize(self, text, special=False):
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def save_tokenizer(self, folder):
        self.tokenizer.save_pretrained(folder)

    def add_tokens(self, tokens):
        added = [AddedToken(token, special=True, normalized=False) for token in tokens]
        self.tokenizer.add_tokens(added, special_tokens=True)
        missing = len(self.tokenizer) - len(self.head().weight)
        if missing:
            old = self.new_token_parameters() or [torch.empty(0, self.spec.dim)] * 2
            rows, head = (
                torch.cat([each, torch.randn(missing, self.spec.dim) / self.spec.dim]) for each in old
            )
            self.new_rows, self.new_head = nn.Parameter(rows), nn.Parameter(head)
        return self.tokenizer.convert_tokens_to_ids(list(tokens))

    def new_token_parameters(self):
        return [] if self.new_rows is None else [self.new_rows, self.new_head]

    @property
    def unwritten_ids(self):
        return frozenset(self.tokenizer.added_tokens_decoder) - {*self.spec.eos_ids}

    def embedding(self):
        if self.new_rows is None:
            return Embedding(self.table.weight, scale=self.scale)
        new = torch.arange(len(self.new_rows), device=self.new_rows.device)
        added_rows = torch.cat([new.new_full((len(self.table.weight),), -1), new])
        return Embedding(self.table.weight, self.new_rows, added_rows, self.scale)

    def embed(self, ids):
        rows = [self.table.weight] if self.new_rows is None else [self.table.weight, self.new_rows]
        return nn.functional.embedding(ids, torch.cat(rows)) * self.scale.to(self.table.weight.dtype)

    def new_cache(self):
        return {}

    def forward(self, embeds_BTD, position_ids_BT, segment_ids_BT, cache=None):
        cache = {} if cache is None else cache

        def seen(name, new):
            cache[name] = torch.cat([cache[name], new], 1) if name in cache else new
            return cache[name]

        positions_BS, segments_BS = seen("positions", position_ids_BT), seen("segments", segment_ids_BT)
        mask_BTS = segment_ids_BT[:, :, None] == segments_BS[:, None]
        mask_BTS = mask_BTS & (position_ids_BT[:, :, None] >= positions_BS[:, None])
        hidden_BTD = embeds_BTD + self.places(position_ids_BT)
        for number, block in enumerate(self.blocks):
            hidden_BTD = block(hidden_BTD, mask_BTS, lambda name, new, n=number: seen(f"{name}{n}", new))
        return hidden_BTD

    def final_norm(self, hidden):
        return nn.functional.rms_norm(hidden, hidden.shape[-1:], 1 + self.offset, EPS)

    @property
    def norm_weights(self):
        return NormWeights(self.offset, EPS, offset=1.0)

    def head(self):
        weight, bias = self.to_logits.weight, self.to_logits.bias
        if self.new_head is not None:
            weight, bias = (
                torch.cat([weight, self.new_head]),
                torch.cat([bias, bias.new_zeros(len(self.new_head))]),
            )
        return Head(weight, bias, soft_cap=self.config.soft_cap, scale=0.5)


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
    return SIZES | given
