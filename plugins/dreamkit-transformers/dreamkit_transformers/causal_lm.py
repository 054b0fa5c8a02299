"""A causal language model of transformers as a part: any that can be driven by embeddings, masks and positions.

A family is a subclass that names its model types and its chat template. What a model honours is found by `probe`.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamkit import ChatTemplate, LanguageSpec, NormWeights
from dreamkit_transformers.adaptable import adaptable
from dreamkit_transformers.chat import template_of
from dreamkit_transformers.configs import load_weights, on_meta
from dreamkit_transformers.described import Described, LanguageConfig, describe, source_folder
from dreamkit_transformers.driving import decoder_of, new_cache, run
from dreamkit_transformers.masks import TokenCache
from dreamkit_transformers.new_rows import WithNewRows
from dreamkit_transformers.norms import as_rms_norm
from dreamkit_transformers.probe import make
from dreamkit_transformers.tokenizers import save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

__all__ = ["CausalLM", "LanguageConfig"]


class CausalLM(WithNewRows):
    """Any decoder of transformers, with its final norm taken out, so that hidden states are those before it.

    Its chat template is the tokenizer's, where that has one of turns with fixed texts around them.
    """

    Config = LanguageConfig
    adapter_root = "model"

    model_types: ClassVar[
        tuple[str, ...]
    ] = ()  # the first is meant where a config names none; none: all there are
    has_bos: ClassVar[bool] = True  # whether a text begins with a token where the tokenizer is one of bytes

    def __init__(self, config: LanguageConfig, found: Described, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = found.tokenizer
        self.chat = self.chat_template(config, found.tokenizer)
        self.spec: LanguageSpec = found.spec(config, self.chat.assistant[1])
        self.abilities = found.abilities()
        self.model: Any = model
        self.norm: nn.Module = nn.Identity()
        if self.abilities.norm is not None:
            self.norm = model.get_submodule(self.abilities.norm)
            model.set_submodule(self.abilities.norm, nn.Identity())
        self._rms_norm = as_rms_norm(self.norm)
        if not self.adapter_targets:
            own = adaptable(model, self.abilities.linear_layers)
            self.adapter_targets = own  # type: ignore[misc]  # a class's, or each model's own
        self._without_new_rows()

    # making

    @classmethod
    def tiny_config(cls) -> Any:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        return cls.Config(config={"model_type": "gpt_neox", **sizes, "max_position_embeddings": 64})

    @classmethod
    def infer_spec(cls, config: LanguageConfig) -> LanguageSpec:
        found = cls._described(config)
        if config.pretrained is None:
            return on_meta(lambda: cls._random(config, found)._tried()).spec
        return found.spec(config, cls.chat_template(config, found.tokenizer).assistant[1])

    @classmethod
    def meta_modules(cls, config: LanguageConfig) -> Self:
        found = cls._described(config)
        return on_meta(lambda: cls._random(config, found))

    @classmethod
    def from_config(cls, config: LanguageConfig) -> Self:
        return cls._random(config, cls._described(config))

    @classmethod
    def from_pretrained(cls, config: LanguageConfig) -> Self:
        assert config.pretrained is not None, "the recipe gives either a source or a config"
        folder = source_folder(config, weights=True)  # before the rest, which then reads these files
        found = cls._described(config)
        found.abilities()  # before the weights are read: they may be those of a model that cannot be driven
        return cls(config, found, load_weights(found.model_class, folder, found.library_config))

    @classmethod
    def _described(cls, config: LanguageConfig) -> Described:
        return describe(config, cls.model_types, cls.has_bos)

    @classmethod
    def _random(cls, config: LanguageConfig, found: Described) -> Self:
        found.abilities()  # before the model is made
        return cls(config, found, make(found.model_class, found.library_config))

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """What the family was taught to see around turns. Its texts are tokenized one by one."""
        return template_of(tokenizer)

    def _tried(self) -> Self:
        """Itself, after a forward pass: values that do not go together show only there."""
        if not self.abilities.on_meta:
            return self
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

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Added special tokens, and ids that are no token; a text starts, ends and fails with the others."""
        added = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        nameless = set(range(len(self.new_rows))) - set(self.tokenizer.get_vocab().values())
        written = {self.tokenizer.bos_token_id, self.tokenizer.unk_token_id, *self.spec.eos_ids}
        return frozenset((added | nameless) - written)

    # computing

    def new_cache(self) -> TokenCache:
        return new_cache(self.model.config, self.abilities.masks)

    def forward(
        self,
        embeds_BTD: Tensor,
        position_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        cache: TokenCache | None = None,
    ) -> Tensor:
        assert cache is None or self.spec.cache, "a model whose spec says cache=False is given none"
        decoder = decoder_of(self.model)
        return run(decoder, self.abilities.masks, embeds_BTD, position_ids_BT, segment_ids_BT, cache)

    def library_forward(self, ids_BT: Tensor) -> Tensor:
        name = self.abilities.norm
        if name is None:
            return self.model(ids_BT, use_cache=False).logits
        identity = self.model.get_submodule(name)
        self.model.set_submodule(name, self.norm)
        try:
            return self.model(ids_BT, use_cache=False).logits
        finally:
            self.model.set_submodule(name, identity)

    def enable_gradient_checkpointing(self) -> None:
        # The library's own recomputes only in training mode, but what flows back through a frozen model, which is
        # in evaluation mode, is as large.
        layers = self._layers()
        if not layers:
            log.warning("%s: its layers are not found; their activations are kept", type(self.model).__name__)
        for layer in layers:
            layer.forward = partial(_recomputed, layer.forward)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    @property
    def norm_weights(self) -> NormWeights | None:
        if self._rms_norm is None:
            return None
        weight: Any = self.norm.weight
        return NormWeights(weight, self._rms_norm.eps, self._rms_norm.offset)

    def _layers(self) -> list[nn.Module]:
        marked: list[nn.Module] = [
            module
            for module in self.model.modules()
            if isinstance(module, transformers.GradientCheckpointingLayer)
        ]
        count = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return marked or [layer for each in lists if len(each) == count for layer in each]


def _recomputed(forward: Any, *args: Any, **named: Any) -> Any:
    """A layer's output, its activations forgotten until they are needed; with a cache nothing flows back."""
    if named.get("cache") is not None or not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, **named)
