"""Describe a language model from its files and settings, without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from dreamkit import (
    ConfigError,
    LanguageSpec,
    PartConfig,
    SourceError,
    did_you_mean,
    excerpt,
    locate,
    read_json,
)
from dreamkit_transformers.configs import (
    KNOWN,
    collect_errors,
    config_from_dict,
    config_from_folder,
    raise_collected,
)
from dreamkit_transformers.generation_file import GenerationSettings, read_generation
from dreamkit_transformers.masks import SLIDING, window_of
from dreamkit_transformers.probe import find_abilities, width_of
from dreamkit_transformers.rope import length_dependent
from dreamkit_transformers.text_decoder import Abilities
from dreamkit_transformers.tokenizers import (
    bos_of,
    byte_tokenizer,
    new_tokens,
    read_tokenizer,
    rows_needed,
    special_ids,
    tokenizer_files,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODERS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model types with a causal language model in the library
COMMON = ("gpt2", "gpt_neox", "llama", "opt", "qwen3")  # suggestions for a name that resembles none
UNLIMITED = 2**20  # max_length, in tokens, of a model without a limit
# model types that pack and have a cache: no probe needed; the tests compare them with one
USUAL = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"})


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(PartConfig):
    """Settings of a language model.

    `tokenizer` is the source of a tokenizer to use instead of the one beside the weights. A part from `config`
    without it gets a tokenizer of bytes.
    """

    tokenizer: str | None = None


@dataclass(frozen=True)
class ModelDescription:
    """The library's config and tokenizer, their source `pretrained`, and the setting `key` that names them.

    `generation` has the end tokens that the source names besides the tokenizer's.
    """

    library_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationSettings
    key: str
    pretrained: str | None = None

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The library's class of the model; imports the library's networks."""
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.library_config)]
        return kind

    def abilities(self) -> Abilities:
        """Return the abilities that a probe finds.

        Raises:
            ConfigError: dreamkit cannot run the model.
        """
        try:
            return find_abilities(self.model_class, self.library_config, self.key)
        except ConfigError as error:
            if self.key != "pretrained":
                raise
            raise SourceError(f"'{self.pretrained}': {error.problems[self.key]}") from error

    def abilities_of_spec(self) -> dict[str, bool]:
        """Return the abilities of the spec: to pack documents in a row, to attend by document, to decode with a cache.

        Raises:
            ConfigError: a probe, run unless the model is usual, finds that dreamkit cannot run it.
        """
        config: Any = self.library_config
        unusual = (
            config.is_encoder_decoder
            or getattr(config, "use_bidirectional_attention", False)
            or length_dependent(config)
        )
        if config.model_type in USUAL and not unusual:
            is_capped = getattr(config, "attn_logit_softcapping", None) is not None
            return {
                "packing": True,
                "cache": True,
                "cache_padding": True,
                "document_attention": not is_capped,
            }
        abilities = self.abilities()
        return {
            "packing": abilities.masks != "none",
            "cache": abilities.cache,
            "cache_padding": abilities.cache_padding,
            "document_attention": abilities.documents,
        }

    def spec(
        self, config: LanguageConfig, turn_ends: Sequence[str], conversation_problem: str | None
    ) -> LanguageSpec:
        """Return the spec; the first special token of each of `turn_ends`, if it has one, also ends a text.

        Raises:
            ConfigError: no token ends a text, the tokenizer puts several tokens before a text, or it has more tokens
                than the model has rows.
        """
        library_config: Any = self.library_config
        tokenizer = self.tokenizer
        key = "pretrained" if config.tokenizer is None else "tokenizer"
        eos = tuple(
            dict.fromkeys(
                index
                for index in (
                    tokenizer.eos_token_id,
                    *self.generation.eos_ids,
                    *(index for text in turn_ends for index in _first_special(tokenizer, text)),
                )
                if index is not None
            )
        )
        if not eos:
            raise SourceError(
                f"missing eos_token in the tokenizer '{tokenizer.name_or_path}'; name a tokenizer that has one",
                key,
            )
        needed = rows_needed(tokenizer)
        if needed > library_config.vocab_size:
            key = "config.vocab_size" if "vocab_size" in (config.config or {}) else key
            raise SourceError(
                f"expected a vocab_size of at least {needed}, the tokens of the tokenizer, "
                f"got {library_config.vocab_size}; name the model's own tokenizer or raise vocab_size",
                key,
            )
        rows = max(library_config.vocab_size, len(tokenizer))
        if max(eos) >= rows:
            raise SourceError(
                f"expected an eos_token_id below {rows}, the number of tokens, got {max(eos)}; correct it in "
                "generation_config.json or config.json, or name the model's own tokenizer",
                key,
            )
        pad_id = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        bos_id = bos_of(tokenizer)
        reserved = {index for index in (bos_id, *eos, pad_id) if index is not None}
        return LanguageSpec(
            dim=width_of(library_config),
            vocab_size=library_config.vocab_size,
            max_length=_max_length(library_config),
            sliding_window=_window(library_config),
            bos_id=bos_id,
            eos_ids=eos,
            pad_id=pad_id,
            **self.abilities_of_spec(),
            reserved_tokens=tuple(tokenizer.convert_ids_to_tokens(sorted(reserved))),
            conversation_problem=conversation_problem,
        )


def describe(config: LanguageConfig, model_types: Sequence[str], has_bos: bool = True) -> ModelDescription:
    """Read the files of `config.pretrained`, or `config.config`, as a model of one of `model_types`.

    Without `model_types`, any decoder of the library is accepted. A config without `model_type` is of the first.
    `has_bos`: the tokenizer of bytes, for a config without `tokenizer`, has a bos token.

    Raises:
        ConfigError: all problems of files and settings.
    """
    errors: list[ConfigError] = []
    tokenizer = library_config = None
    generation = GenerationSettings()
    with collect_errors(errors):
        if config.tokenizer is not None:
            tokenizer = read_tokenizer(config.tokenizer)
        elif config.pretrained is None:
            tokenizer = byte_tokenizer(has_bos)
    with collect_errors(errors):
        if config.pretrained is None:
            library_config = _from_dict(config.config or {}, tokenizer, model_types)
        else:
            folder = source_folder(config, weights=config.is_local)
            library_config = _from_folder(folder, model_types)
            generation = read_generation(folder, library_config.vocab_size)
            tokenizer = tokenizer or (
                None if errors else read_tokenizer(config.pretrained, "pretrained", known=KNOWN)
            )
    raise_collected(errors)
    assert tokenizer is not None and library_config is not None, "errors are raised above"
    key = "config" if config.pretrained is None else "pretrained"
    return ModelDescription(library_config, tokenizer, generation, key, config.pretrained)


def source_folder(config: LanguageConfig, weights: bool) -> Path:
    """Return the folder of `config.pretrained` with its config, tokenizer and, with `weights`, its weights."""
    files = ["config.json"] if config.tokenizer else ["config.json", tokenizer_files(not config.is_local)]
    return locate(config.pretrained or "", files, weights=weights, known=KNOWN)


def _from_dict(
    values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, model_types: Sequence[str]
) -> PreTrainedConfig:
    model_type = values.get("model_type", model_types[0] if model_types else None)
    key = "config.model_type"
    if model_type is None:
        raise ConfigError({key: "missing 'model_type': name a model of transformers, such as 'gpt_neox'"})
    if model_type not in (model_types or DECODERS):
        raise ConfigError({key: _model_type_problem(str(model_type), model_types)})
    kind = CONFIG_MAPPING[model_type]
    others = {name: value for name, value in values.items() if name != "model_type"}
    return config_from_dict(kind, _tokenizer_values(kind, tokenizer) | others)


def _model_type_problem(model_type: str, model_types: Sequence[str] = ()) -> str:
    """Return the error message for a model type that is not one of `model_types`, or not a decoder."""
    if model_types:
        near = did_you_mean(model_type, model_types)
        return f"expected one of {', '.join(model_types)}, got '{excerpt(str(model_type))}'; {near}"
    near = did_you_mean(model_type, get_close_matches(model_type, DECODERS) or COMMON)
    return f"expected a text decoder of transformers, got '{excerpt(str(model_type))}'; {near}"


def _from_folder(folder: Path, model_types: Sequence[str]) -> PreTrainedConfig:
    file = folder / "config.json"
    values = read_json(file)
    model_type = str(values.get("model_type"))
    known = model_types or DECODERS
    if model_type not in known and "auto_map" in values:
        raise SourceError(
            f"{file}: model_type '{excerpt(model_type)}' needs code from the model's own repository, which dreamkit "
            "does not run; name a model whose architecture is in transformers"
        )
    if model_type not in known and not model_types:
        raise SourceError(f"{file}: model_type: {_model_type_problem(model_type)}")
    kind = CONFIG_MAPPING[model_type] if model_type in known else PreTrainedConfig
    return config_from_folder(kind, folder, known)


def _tokenizer_values(
    kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """Return the values that a library config takes from the tokenizer."""
    if tokenizer is None:
        return {}
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer) - len(new_tokens(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if getattr(kind, "pad_token_id", None) is not None:  # the default may lie outside this vocabulary
        values["pad_token_id"] = tokenizer.pad_token_id
    return values


def _max_length(library_config: Any) -> int:
    """Return the longest text in tokens; MPT names it `max_seq_len`, other models as below or not at all."""
    names = ("max_position_embeddings", "max_seq_len")
    return next((length for name in names if (length := getattr(library_config, name, None))), UNLIMITED)


def _window(library_config: Any) -> int | None:
    layer_types = getattr(library_config, "layer_types", None)
    has_window = layer_types is None or SLIDING in layer_types
    return window_of(library_config) if has_window else None


def _first_special(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the first special token of `text` in a list, which is empty if there is none."""
    special = special_ids(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    return [token for token in ids if token in special][:1]
