"""What files and settings say of a language model, without its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from dreamkit import ConfigError, LanguageSpec, PartConfig, SourceError, did_you_mean, locate
from dreamkit_transformers.configs import (
    KNOWN,
    config_from_dict,
    config_from_folder,
    gathering,
    raise_all,
    read_json,
)
from dreamkit_transformers.driving import Abilities
from dreamkit_transformers.masks import SLIDING
from dreamkit_transformers.probe import abilities
from dreamkit_transformers.tokenizers import (
    TOKENIZER_FILES,
    byte_tokenizer,
    known_or,
    new_tokens,
    read_tokenizer,
    rows_needed,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODERS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # the model types that the library has a causal model for
COMMON = ("gpt2", "gpt_neox", "llama", "opt", "qwen3")  # some of them, for a name that is like none
ENDLESS = 2**20  # tokens: what is said of a model whose length nothing limits
# Model types whose `Limits` need no trial: the tests compare them with one.
USUAL = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"})


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(PartConfig):
    """`tokenizer` is the source of another tokenizer than the weights' own; a `config` without gets bytes."""

    tokenizer: str | None = None


class Limits(NamedTuple):
    """The part of a spec that depends on how the library's model computes."""

    dim: int
    max_length: int
    packing: bool
    cache: bool


@dataclass(frozen=True)
class Described:
    """The library's config and tokenizer, and the setting `key` that they are from."""

    library_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]  # those that the source names besides the tokenizer's
    key: str

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The library's class of the model, which is imported when it is asked for."""
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.library_config)]
        return kind

    def abilities(self) -> Abilities:
        """Return what a trial of the model finds.

        Raises:
            ConfigError: the model cannot be driven.
        """
        return abilities(self.model_class, self.library_config, self.key)

    def limits(self) -> Limits:
        """Return the limits of the model, from a trial unless its type is one of the usual.

        Raises:
            ConfigError: the trial finds that the model cannot be driven.
        """
        config: Any = self.library_config
        if config.model_type in USUAL and not getattr(config, "use_bidirectional_attention", False):
            length = config.max_position_embeddings or ENDLESS
            return Limits(config.hidden_size, length, packing=True, cache=True)
        found = self.abilities()
        length = getattr(config, found.length or "max_position_embeddings", None) or ENDLESS
        return Limits(getattr(config, found.width), length, found.masks != "none", found.cache)

    def spec(self, config: LanguageConfig, turn_end: str) -> LanguageSpec:
        """The spec; a special token that `turn_end` begins with ends a text too.

        Raises:
            ConfigError: no token ends a text, or there are more tokens than the model has rows.
        """
        library_config: Any = self.library_config
        tokenizer = self.tokenizer
        key = "pretrained" if config.tokenizer is None else "tokenizer"
        eos = tuple(
            dict.fromkeys(
                index
                for index in (tokenizer.eos_token_id, *self.eos_ids, *_special_first(tokenizer, turn_end))
                if index is not None
            )
        )
        if not eos:
            raise SourceError(
                f"the tokenizer '{tokenizer.name_or_path}' has no eos_token, which ends a text", key
            )
        needed = rows_needed(tokenizer)
        if needed > library_config.vocab_size:
            key = "config.vocab_size" if "vocab_size" in (config.config or {}) else key
            raise SourceError(
                f"the tokenizer has {needed} tokens, but the model's vocab_size is "
                f"{library_config.vocab_size}; name the tokenizer that belongs to the model, or raise vocab_size",
                key,
            )
        rows = max(library_config.vocab_size, len(tokenizer))
        if max(eos) >= rows:
            raise SourceError(
                f"token {max(eos)} ends a text, but there are {rows} tokens; correct eos_token_id in "
                "generation_config.json or config.json, or name the tokenizer that belongs to the model",
                key,
            )
        limits = self.limits()
        pad_id = eos[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        reserved = {index for index in (tokenizer.bos_token_id, *eos, pad_id) if index is not None}
        return LanguageSpec(
            dim=limits.dim,
            vocab_size=library_config.vocab_size,
            max_length=limits.max_length,
            sliding_window=_window(library_config),
            bos_id=tokenizer.bos_token_id,
            eos_ids=eos,
            pad_id=pad_id,
            packing=limits.packing,
            cache=limits.cache,
            reserved_tokens=tuple(tokenizer.convert_ids_to_tokens(sorted(reserved))),
        )


def describe(config: LanguageConfig, model_types: Sequence[str], has_bos: bool = True) -> Described:
    """What is said by the files of `config.pretrained`, or by `config.config`, of a model of one of these types.

    The first of `model_types` is meant where a config names none; none at all are every decoder of the library.
    `has_bos` is of the tokenizer of a config that names none.

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
            tokenizer = byte_tokenizer(has_bos)
    with gathering(errors):
        if config.pretrained is None:
            library_config = _from_dict(config.config or {}, tokenizer, model_types)
        else:
            folder = source_folder(config, weights=config.is_local)
            library_config = _from_folder(folder, model_types)
            eos_ids = _eos_ids(folder)
            tokenizer = tokenizer or (
                None if errors else read_tokenizer(config.pretrained, "pretrained", known=KNOWN)
            )
    raise_all(errors)
    assert tokenizer is not None and library_config is not None, "what cannot be read is a problem"
    key = "config" if config.pretrained is None else "pretrained"
    return Described(library_config, tokenizer, tuple(eos_ids), key)


def source_folder(config: LanguageConfig, weights: bool) -> Path:
    files = (
        ["config.json"] if config.tokenizer else ["config.json", known_or(TOKENIZER_FILES, config.is_local)]
    )
    return locate(config.pretrained or "", files, weights=weights, known=KNOWN)


def _from_dict(
    values: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, model_types: Sequence[str]
) -> PreTrainedConfig:
    wanted = values.get("model_type", model_types[0] if model_types else None)
    key = "config.model_type"
    if wanted is None:
        raise ConfigError(
            {key: "missing, but it says which of the library's models is meant, such as 'gpt_neox'"}
        )
    if wanted not in (model_types or DECODERS):
        raise ConfigError({key: f"'{wanted}' found, {_no_decoder(str(wanted), model_types)}"})
    kind = CONFIG_MAPPING[wanted]
    given = {name: value for name, value in values.items() if name != "model_type"}
    return config_from_dict(kind, _ids(kind, tokenizer) | given)


def _no_decoder(model_type: str, model_types: Sequence[str] = ()) -> str:
    """The rest of an error message about a model type that is none of these."""
    if model_types:
        return f"but a decoder's is wanted; {did_you_mean(model_type, model_types)}"
    near = did_you_mean(model_type, get_close_matches(model_type, DECODERS) or COMMON)
    if model_type not in CONFIG_MAPPING:
        return f"but a decoder of text that transformers knows is needed; {near}"
    if getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False):
        return f"which is an encoder and a decoder, but a decoder of text alone is needed; {near}"
    return f"which is no decoder of text, but one is needed; {near}"


def _from_folder(folder: Path, model_types: Sequence[str]) -> PreTrainedConfig:
    file = folder / "config.json"
    written = read_json(file)
    found = str(written.get("model_type"))
    known = model_types or DECODERS
    if found not in known and "auto_map" in written:
        raise SourceError(
            f"{file} has model_type '{found}', whose code comes with the model; dreamkit runs no such code. "
            "Name a model whose architecture is in transformers"
        )
    if found not in known and not model_types:
        raise SourceError(f"{file} has model_type '{found}', {_no_decoder(found)}")
    kind = CONFIG_MAPPING[found] if found in known else PreTrainedConfig
    return config_from_folder(kind, folder, known)


def _ids(kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a library's config takes from the tokenizer."""
    if tokenizer is None:
        return {}
    ids: dict[str, Any] = {
        "vocab_size": len(tokenizer) - len(new_tokens(tokenizer)),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if getattr(kind, "pad_token_id", None) is not None:  # of another vocabulary, in which it may not even be
        ids["pad_token_id"] = tokenizer.pad_token_id
    return ids


def _window(library_config: Any) -> int | None:
    layer_types = getattr(library_config, "layer_types", None)
    slides = layer_types is None or SLIDING in layer_types
    return getattr(library_config, "sliding_window", None) if slides else None


def _special_first(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The special token that a text begins with, if it does."""
    first = tokenizer(text, add_special_tokens=False)["input_ids"][:1] if text else []
    return [index for index in first if index in tokenizer.all_special_ids or _is_special(tokenizer, index)]


def _is_special(tokenizer: PreTrainedTokenizerBase, index: int) -> bool:
    token = tokenizer.added_tokens_decoder.get(index)
    return token is not None and token.special


def _eos_ids(folder: Path) -> list[int]:
    """The tokens that end a text as `generation_config.json` has them, or else `config.json`.

    Raises:
        SourceError: they are no numbers of tokens.
    """
    file = folder / "generation_config.json"
    file = file if file.is_file() else folder / "config.json"
    found = read_json(file).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise SourceError(
            f"{file} has eos_token_id {found!r}, but the number of a token, or a list of some, is needed"
        )
    return ids
