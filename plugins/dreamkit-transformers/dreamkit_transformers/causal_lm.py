"""A causal language model of transformers as a part, driven by embeddings, masks and positions.

A family is a subclass with its model types and its chat template. `probe` finds what each model supports.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamkit import ChatTemplate, LanguageSpec, NormWeights, Spans, Turn
from dreamkit_transformers.adapter_layers import layers_matching
from dreamkit_transformers.added_tokens import TokenAddingModel
from dreamkit_transformers.chat import plain_turns
from dreamkit_transformers.configs import load_weights, on_meta, random_model
from dreamkit_transformers.description import LanguageConfig, ModelDescription, describe, source_folder
from dreamkit_transformers.document_attention import use_document_attention
from dreamkit_transformers.library_chat import LibraryChat, problem_of, turn_ends
from dreamkit_transformers.norms import as_rms_norm
from dreamkit_transformers.text_decoder import (
    decoder_of,
    new_cache,
    replaced_module,
    run_decoder,
    truncate_rows,
)
from dreamkit_transformers.token_cache import TokenCache
from dreamkit_transformers.tokenizers import is_of_release_0_1, save_tokenizer, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

__all__ = ["CausalLM", "LanguageConfig"]


class CausalLM(TokenAddingModel):
    """Any decoder of transformers. Its final norm is taken out, so hidden states are those before the norm.

    Conversations are in the tokenizer's own chat template. Without one, the family's texts are around turns.
    `model_types` are the accepted model types: the first is the default, and an empty tuple accepts any decoder.
    `has_bos`: the tokenizer of bytes has a bos token.
    """

    Config = LanguageConfig
    adapter_root = "model"

    model_types: ClassVar[tuple[str, ...]] = ()
    has_bos: ClassVar[bool] = True

    def __init__(self, config: LanguageConfig, description: ModelDescription, model: PreTrainedModel) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = description.tokenizer
        self._suppressed_ids = description.generation.suppressed_ids
        layout = self.conversation_layout(config, description.tokenizer)
        self.library_chat = layout if isinstance(layout, LibraryChat) else None
        self.chat = layout if isinstance(layout, ChatTemplate) else None
        self.spec: LanguageSpec = self._spec(config, description, layout)
        self.abilities = description.abilities()
        self.model: Any = model
        self.norm: nn.Module = nn.Identity()
        if self.abilities.norm is not None:
            self.norm = model.get_submodule(self.abilities.norm)
            model.set_submodule(self.abilities.norm, nn.Identity())
        self._rms_norm = as_rms_norm(self.norm)
        if self.abilities.documents:
            use_document_attention(model.config)
        if not self.adapter_targets:
            targets = layers_matching(model, self.abilities.linear_layers)
            self.adapter_targets = targets  # type: ignore[misc]  # of the class, or of this model alone
        self._prepare_added_tokens()

    # building

    @classmethod
    def tiny_config(cls) -> Any:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        return cls.Config(config={"model_type": "gpt_neox", **sizes, "max_position_embeddings": 64})

    @classmethod
    def infer_spec(cls, config: LanguageConfig) -> LanguageSpec:
        description = cls._describe(config)
        if config.pretrained is None:
            return on_meta(lambda: cls._build_random(config, description)._run_once()).spec
        layout = cls.conversation_layout(config, description.tokenizer)
        return cls._spec(config, description, layout)

    @classmethod
    def _spec(
        cls, config: LanguageConfig, description: ModelDescription, layout: LibraryChat | ChatTemplate
    ) -> LanguageSpec:
        spec = description.spec(config, turn_ends(layout), problem_of(layout))
        # a subclass may have a `forward` of its own, without spans
        takes_spans = "spans" in inspect.signature(cls.forward).parameters
        return replace(spec, document_attention=spec.document_attention and takes_spans)

    @classmethod
    def meta_modules(cls, config: LanguageConfig) -> Self:
        description = cls._describe(config)
        return on_meta(lambda: cls._build_random(config, description))

    @classmethod
    def from_config(cls, config: LanguageConfig) -> Self:
        return cls._build_random(config, cls._describe(config))._log_problems()

    @classmethod
    def from_pretrained(cls, config: LanguageConfig) -> Self:
        part = cls._load(config)
        assert part is not None, "weights of any type can be read in float32"
        return part

    @classmethod
    def from_stored(cls, config: LanguageConfig) -> Self | None:
        return cls._load(config, as_stored=True)

    @classmethod
    def _load(cls, config: LanguageConfig, *, as_stored: bool = False) -> Self | None:
        assert config.pretrained is not None, "a recipe names a source or a config"
        folder = source_folder(config, weights=True)  # first: downloads the files that the rest reads
        description = cls._describe(config)
        description.abilities()  # raises for unsupported models, before weights are read
        on_meta(lambda: cls._build_random(config, description)._run_once(), config.pretrained)
        if replaced := description.generation.replaced:
            log.info(
                "%s: not used when writing text: %s of the source; a recipe's `generation` decides sampling",
                config.pretrained,
                ", ".join(replaced),
            )
        if unsupported := description.generation.unsupported:
            log.warning(
                "%s: not used when writing text: %s of the source; texts may differ from the library's",
                config.pretrained,
                ", ".join(unsupported),
            )
        model = load_weights(
            description.model_class, folder, description.library_config, as_stored=as_stored, all_layers=True
        )
        if model is None:
            return None
        part = cls(config, description, model)
        part.is_as_stored = as_stored
        return part._log_problems()

    @classmethod
    def _describe(cls, config: LanguageConfig) -> ModelDescription:
        return describe(config, cls.model_types, cls.has_bos)

    @classmethod
    def _build_random(cls, config: LanguageConfig, description: ModelDescription) -> Self:
        description.abilities()  # raises for unsupported models, before weights are made
        return cls(config, description, random_model(description.model_class, description.library_config))

    @classmethod
    def conversation_layout(
        cls, config: Any, tokenizer: PreTrainedTokenizerBase
    ) -> LibraryChat | ChatTemplate:
        """Return the tokenizer's own chat template, or `chat_template` if it has none."""
        if not tokenizer.chat_template or (cls.model_types and is_of_release_0_1(tokenizer)):
            return cls.chat_template(config, tokenizer)
        return LibraryChat(tokenizer)

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """Return the texts that the family puts around turns. Each text is tokenized by itself."""
        return plain_turns(tokenizer)

    def _log_problems(self) -> Self:
        """Log why conversations are refused, or that the template does not end an answer; return the part."""
        if self.library_chat is None:
            return self
        end = "".join(self.library_chat.turn_ends)
        if self.library_chat.problem is not None:
            log.warning("conversations are refused: %s", self.library_chat.problem)
        elif not set(self.spec.eos_ids) & set(self.tokenize(end, special=True)):
            log.warning(
                "the chat template of '%s' puts %r after an answer, without an end token: an answer ends at max_tokens",
                self.tokenizer.name_or_path,
                self.library_chat.turn_ends[0],
            )
        return self

    def _run_once(self) -> Self:
        """Run a forward pass, which fails if values of the config do not fit each other; return the part."""
        if self.abilities.on_meta:
            position_ids = torch.arange(2)[None]
            self(torch.zeros(1, 2, self.spec.dim), position_ids, torch.zeros_like(position_ids))
        return self

    # words

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special, verbose=False
        )
        return encoded["input_ids"]

    def conversation(self, turns: Sequence[Turn], prompt: bool) -> tuple[list[int], list[bool]]:
        if self.library_chat is None:
            return super().conversation(turns, prompt)
        return self.library_chat.tokens(turns, prompt)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_name(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))

    def save_tokenizer(self, folder: Path) -> None:
        save_tokenizer(self.tokenizer, folder)

    @property
    def suppressed_ids(self) -> frozenset[int]:
        """Special tokens and ids without a token, and the source's `suppress_tokens`.

        Not among the first are bos, unk and eos, and what the chat template lets the model write around an answer.
        """
        nameless = set(range(len(self.new_rows))) - set(self.tokenizer.get_vocab().values())
        written = frozenset() if self.library_chat is None else self.library_chat.written_ids
        allowed = {self.tokenizer.bos_token_id, self.tokenizer.unk_token_id, *self.spec.eos_ids, *written}
        return frozenset((special_ids(self.tokenizer) | nameless) - allowed) | self._suppressed_ids

    # computing

    def new_cache(self) -> TokenCache:
        return new_cache(self.model.config, self.abilities.masks, padding=self.spec.cache_padding)

    def select_rows(self, cache: TokenCache, rows: Sequence[int]) -> bool:
        if can_select := cache.can_select:
            cache.select(rows)
        return can_select

    def join_rows(self, cache: TokenCache, other: TokenCache) -> bool:
        if can_join := cache.has_slots and cache.padding:
            cache.join(other)
        return can_join

    def copy_rows(self, cache: TokenCache, rows: Sequence[int]) -> TokenCache | None:
        return cache.copied(rows) if cache.can_select else None

    def truncate_rows(self, cache: TokenCache, lengths: Sequence[int]) -> bool:
        return truncate_rows(self.model.config, cache, lengths)

    def cache_bytes(self, cache: TokenCache) -> int | None:
        return cache.nbytes if cache.has_slots else None

    def forward(
        self,
        embeds_BTD: Tensor,
        position_ids_BT: Tensor,
        segment_ids_BT: Tensor,
        cache: TokenCache | None = None,
        spans: Spans | None = None,
    ) -> Tensor:
        assert cache is None or self.spec.cache, "a model with spec.cache=False gets no cache"
        inputs = (embeds_BTD, position_ids_BT, segment_ids_BT)
        return run_decoder(decoder_of(self.model), self.abilities.masks, *inputs, cache, spans)

    def library_forward(self, ids_BT: Tensor) -> Tensor:
        with replaced_module(self.model, self.abilities.norm, self.norm):
            return self.model(ids_BT, use_cache=False).logits

    def float32_tensors(self) -> Iterator[Tensor]:
        """Yield the buffers that the library computes itself, and keeps in float32 when it loads half precision.

        Half precision would round the frequencies of rotary embeddings: in bfloat16, far positions turn by radians.
        """
        for module in self.model.modules():
            computed = module._non_persistent_buffers_set
            yield from (
                buffer for name, buffer in module._buffers.items() if name in computed and buffer is not None
            )

    def enable_gradient_checkpointing(self) -> None:
        # The library's own checkpointing works only in training mode. A frozen model is in evaluation mode, but
        # gradients flow back through it and need as much memory.
        layers = self._layers()
        if not layers:
            log.warning(
                "%s: no layers found; gradient checkpointing has no effect", type(self.model).__name__
            )
        for layer in layers:
            layer.forward = partial(_checkpointed, layer.forward)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)

    @property
    def norm_weights(self) -> NormWeights | None:
        if self._rms_norm is None:
            return None
        weight: Any = self.norm.weight
        return NormWeights(weight, self._rms_norm.eps, self._rms_norm.offset)

    def _layers(self) -> list[nn.Module]:
        """Return the layers: modules that the library marks for checkpointing, else those in lists of their number."""
        marked: list[nn.Module] = [
            module
            for module in self.model.modules()
            if isinstance(module, transformers.GradientCheckpointingLayer)
        ]
        count = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return marked or [layer for each in lists if len(each) == count for layer in each]


def _checkpointed(forward: Any, *args: Any, **named: Any) -> Any:
    """Run a layer and recompute its activations in the backward pass; with a cache there is none."""
    if named.get("cache") is not None or not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, **named)
