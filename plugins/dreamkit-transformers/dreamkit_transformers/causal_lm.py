"""A causal language model of transformers as a part; a family is a subclass that names its classes.

B rows, T tokens of a row, D width, K rows of added tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dreamkit import (
    ChatTemplate,
    ConfigError,
    DreamkitError,
    Head,
    LanguageModel,
    LanguageSpec,
    NormWeights,
    PartConfig,
    SourceError,
    locate,
)
from dreamkit_transformers.configs import (
    config_from_dict,
    config_from_folder,
    gathering,
    load_weights,
    on_meta,
    raise_all,
    read_json,
)
from dreamkit_transformers.masks import TokenCache, attention_masks
from dreamkit_transformers.tokenizers import (
    TOKENIZER_FILES,
    add_special,
    byte_tokenizer,
    new_tokens,
    read_tokenizer,
    save_tokenizer,
)

NEW_ROW_NOISE = 0.1  # spread of new rows about the mean row, in standard deviations of the existing rows


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(PartConfig):
    """`tokenizer` is the source of another tokenizer than the weights' own; a `config` without gets bytes."""

    tokenizer: str | None = None


@dataclass(frozen=True)
class _Described:
    library_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    spec: LanguageSpec


class CausalLM(LanguageModel):
    """A transformers model with its final norm taken out, so that hidden states are those before it.

    Tokens that the vocabulary lacks live in rows of their own, `new_embed` and `new_head` (K, D), beside the
    model's matrices, which keep their shape: they can be trained where the model is frozen. A model that ties
    its head to its embedding has `new_embed` alone.
    """

    Config = LanguageConfig

    model_types: ClassVar[tuple[str, ...]]
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]

    new_rows: Tensor  # (ids,) the row of an added token's id, or -1
    inside_ids: Tensor  # the ids of the first rows: those that lie within the model's matrices

    def __init__(self, config: LanguageConfig, found: _Described, model: PreTrainedModel) -> None:
        super().__init__()
        self.config, self.spec = config, found.spec
        self.model: Any = model
        self.norm: Any = self.model.model.norm
        self.model.model.norm = nn.Identity()
        self.tokenizer = found.tokenizer
        self.chat = self.chat_template(config, found.tokenizer)
        self.new_embed: nn.Parameter | None = None
        self.new_head: nn.Parameter | None = None
        self.register_buffer("new_rows", torch.full((self.spec.vocab_size,), -1), persistent=False)
        self.register_buffer("inside_ids", torch.empty(0, dtype=torch.long), persistent=False)
        self._checkpointing = False

    # making

    @classmethod
    def miniature(cls) -> Any:
        sizes = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
        }
        return cls.Config(config={**sizes, "num_attention_heads": 4, "num_key_value_heads": 2})

    @classmethod
    def spec_from(cls, config: LanguageConfig) -> LanguageSpec:
        described = cls._described(config)
        if config.pretrained is None:
            on_meta(lambda: cls._random(config, described)._tried())
        return described.spec

    @classmethod
    def outline(cls, config: LanguageConfig) -> Self:
        described = cls._described(config)
        return on_meta(lambda: cls._random(config, described))

    @classmethod
    def from_config(cls, config: LanguageConfig) -> Self:
        return cls._random(config, cls._described(config))

    @classmethod
    def from_pretrained(cls, config: LanguageConfig) -> Self:
        assert config.pretrained is not None, "the recipe gives either a source or a config"
        found = cls._described(config)
        model = load_weights(cls.model_class, cls._folder(config, weights=True), found.library_config)
        return cls(config, found, model)

    @classmethod
    def _random(cls, config: LanguageConfig, found: _Described) -> Self:
        model = cls.model_class._from_config(found.library_config, attn_implementation="sdpa")
        return cls(config, found, model)

    @classmethod
    def _described(cls, config: LanguageConfig) -> _Described:
        """What files and settings say, without weights.

        Raises:
            ConfigError: all that is wrong with them.
        """
        errors: list[ConfigError] = []
        tokenizer = library_config = None
        eos_ids: list[int] = []
        with gathering(errors):
            if config.tokenizer is not None:
                tokenizer = read_tokenizer(config.tokenizer)
            elif config.pretrained is None:
                tokenizer = byte_tokenizer()
        with gathering(errors):
            if config.pretrained is None:
                library_config = config_from_dict(cls.config_class, _ids(tokenizer) | (config.config or {}))
            else:
                folder = cls._folder(config, weights=config.is_local)
                library_config = config_from_folder(cls.config_class, folder, cls.model_types)
                eos_ids = _eos_ids(folder)
                tokenizer = tokenizer or (None if errors else read_tokenizer(config.pretrained, "pretrained"))
        raise_all(errors)
        assert tokenizer is not None and library_config is not None, "what cannot be read is a problem"
        return _Described(library_config, tokenizer, _spec(config, library_config, tokenizer, eos_ids))

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """What the family was taught to see around turns. Its texts are tokenized one by one."""
        raise NotImplementedError

    @classmethod
    def _folder(cls, config: LanguageConfig, weights: bool) -> Path:
        files = ["config.json"] if config.tokenizer else ["config.json", TOKENIZER_FILES]
        return locate(config.pretrained or "", files, weights=weights)

    def _tried(self) -> Self:
        """Itself, after a forward pass: values that do not go together show only there."""
        position_ids = torch.arange(2)[None]
        self(torch.zeros(1, 2, self.spec.dim), position_ids, torch.zeros_like(position_ids))
        return self

    # words

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )
        return encoded["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def save_tokenizer(self, folder: Path) -> None:
        save_tokenizer(self.tokenizer, folder)

    # added tokens

    def add_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Ids of the special `tokens`, in order; those the vocabulary lacks get new, separately trained rows.

        Raises:
            DreamkitError: it was called before, and a token is new to it.
        """
        unknown = sorted(set(tokens) - self.tokenizer.get_vocab().keys())
        if unknown and self.new_embed is not None:
            raise DreamkitError(f"tokens are added once, when the model is made; too late for {unknown}")
        add_special(self.tokenizer, tokens)
        if self.new_embed is None:
            self._make_rows()
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in tokens]

    def _make_rows(self) -> None:
        """Gives rows to the tokens that were added, and to any that the model's matrices are too short for.

        A tokenizer may know fewer tokens than the matrices have rows (they were padded to a round number), so
        that an added token's id may lie within them; or more.
        """
        vocab_size = self.spec.vocab_size
        vocabulary = self.tokenizer.get_vocab()
        added = {vocabulary[token] for token in new_tokens(self.tokenizer)}
        count = max(vocab_size, 1 + max(vocabulary.values()))
        chosen = sorted(added | set(range(vocab_size, count)))
        if not chosen:
            return
        table = torch.full((count,), -1)
        table[chosen] = torch.arange(len(chosen))
        inside = [index for index in chosen if index < vocab_size]
        self.new_rows = table.to(self.new_rows.device)
        self.inside_ids = torch.tensor(inside, dtype=torch.long, device=self.new_rows.device)
        self.new_embed = _rows_like(self.model.get_input_embeddings().weight, len(chosen))
        if not self.model.config.tie_word_embeddings:
            self.new_head = _rows_like(self.model.get_output_embeddings().weight, len(chosen))

    def new_token_parameters(self) -> Sequence[nn.Parameter]:
        return [rows for rows in (self.new_embed, self.new_head) if rows is not None]

    @property
    def unwritten_ids(self) -> frozenset[int]:
        """Added special tokens, and ids that are no token; a text starts, ends and fails with the others."""
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        nameless = set(range(len(self.new_rows))) - set(self.tokenizer.get_vocab().values())
        written = {self.tokenizer.bos_token_id, self.tokenizer.unk_token_id, *self.spec.eos_ids}
        return frozenset((added | nameless) - written)

    # computing

    def embed(self, ids: Tensor) -> Tensor:
        base = self.model.get_input_embeddings()
        if self.new_embed is None:
            return base(ids)
        row = self.new_rows[ids]
        known = base(ids.clamp(max=self.spec.vocab_size - 1))
        return torch.where(row[..., None] < 0, known, F.embedding(row.clamp(min=0), self.new_embed))

    def new_cache(self) -> TokenCache:
        return TokenCache()

    def forward(
        self,
        embeds_BTD: Tensor,
        position_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        cache: TokenCache | None = None,
    ) -> Tensor:
        if self._checkpointing:
            # A layer recomputes only in training mode, where it forgets the cache. A frozen model is in
            # evaluation mode, but what flows back through it is as large.
            recompute = cache is None and torch.is_grad_enabled()
            for layer in self.model.model.layers:
                layer.training = recompute
        masks = attention_masks(
            self.model.config, position_ids_BT, segment_ids_BT, cache, dtype=embeds_BTD.dtype
        )
        output = self.model.model(
            inputs_embeds=embeds_BTD,
            position_ids=position_ids_BT,
            attention_mask=masks,
            cache=None if cache is None else cache.layers,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def library_forward(self, ids_BT: Tensor) -> Tensor:
        decoder = self.model.model
        hidden = decoder(ids_BT, use_cache=False).last_hidden_state
        return self.model.lm_head(self.norm(hidden))

    def enable_gradient_checkpointing(self) -> None:
        self.model.activation_checkpointing_enable()
        self._checkpointing = True

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    @property
    def norm_weights(self) -> NormWeights | None:
        return NormWeights(self.norm.weight, self.norm.variance_epsilon)

    def head(self) -> Head:
        head = self.model.get_output_embeddings()
        rows = self._head_rows()
        return Head(head.weight if rows is None else self._with_new(head.weight, rows, dim=0))

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.model.get_output_embeddings()(hidden)
        rows = self._head_rows()  # a product of their own is cheaper than joining the matrices
        return logits if rows is None else self._with_new(logits, F.linear(hidden, rows), dim=-1)

    def _head_rows(self) -> Tensor | None:
        return self.new_embed if self.model.config.tie_word_embeddings else self.new_head

    def _with_new(self, known: Tensor, new: Tensor, dim: int) -> Tensor:
        """What belongs to the vocabulary's ids along `dim`, with that of added tokens put in its place."""
        inside = self.inside_ids.shape[0]
        if inside:
            known = known.index_copy(dim, self.inside_ids, new.narrow(dim, 0, inside).to(known.dtype))
        return torch.cat([known, new.narrow(dim, inside, new.shape[dim] - inside)], dim=dim)


def _ids(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a library's config takes from the tokenizer."""
    if tokenizer is None:
        return {}
    return {
        "vocab_size": len(tokenizer) - len(new_tokens(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _spec(
    config: LanguageConfig, library_config: Any, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]
) -> LanguageSpec:
    """`eos_ids` are those the source names besides the tokenizer's.

    Raises:
        ConfigError: no token ends a text, or there are more tokens than the model has rows.
    """
    key = "pretrained" if config.tokenizer is None else "tokenizer"
    found = [tokenizer.eos_token_id, *eos_ids]
    eos = tuple(dict.fromkeys(index for index in found if index is not None))
    if not eos:
        raise SourceError(
            f"the tokenizer '{tokenizer.name_or_path}' has no eos_token, which ends a text", key
        )
    if tokenizer.vocab_size > library_config.vocab_size:
        key = "config.vocab_size" if "vocab_size" in (config.config or {}) else key
        raise SourceError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{library_config.vocab_size}; name the tokenizer that belongs to the model, or raise vocab_size",
            key,
        )
    pad_id = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    reserved = {index for index in (tokenizer.bos_token_id, *eos, pad_id) if index is not None}
    return LanguageSpec(
        dim=library_config.hidden_size,
        vocab_size=library_config.vocab_size,
        max_length=library_config.max_position_embeddings,
        sliding_window=getattr(library_config, "sliding_window", None),
        bos_id=tokenizer.bos_token_id,
        eos_ids=eos,
        pad_id=pad_id,
        reserved_tokens=tuple(tokenizer.convert_ids_to_tokens(sorted(reserved))),
    )


def _eos_ids(folder: Path) -> list[int]:
    """The tokens that end a text as `generation_config.json` has them, or else `config.json`."""
    file = folder / "generation_config.json"
    ids = read_json(file if file.is_file() else folder / "config.json").get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _rows_like(weight: Tensor, count: int) -> nn.Parameter:
    """Rows near the mean row of a matrix: a new token starts as likely as an average one."""
    with torch.no_grad():
        mean, spread = weight.mean(0), weight.std()
        return nn.Parameter(mean + NEW_ROW_NOISE * spread * torch.randn_like(weight[:1].expand(count, -1)))
