"""Small copies of a model's config that keep every kind of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedConfig

from dreamkit_transformers.rope import LONGROPE

VOCABULARY = 64
HEAD_DIM = 16  # of models without heads
WINDOW = 4  # tokens
SWITCH = 2 * WINDOW  # tokens of a document before LongRoPE switches its factors
HEADS = 4
WIDTH = HEADS * HEAD_DIM
EXPERTS = 4

# the library's names for the widths of layers, numbers of experts, and numbers of experts used per token
_WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_SHARED_HEADS = ("num_key_value_heads", "num_kv_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")


def small_copies(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield copies with few layers and words: first with small widths, then with the widths of `config`.

    Windows are shorter than the probe's texts, and LongRoPE switches between their lengths. Copies that the config's
    class rejects are left out.
    """
    values = config.to_dict()
    few = _few(config, values)
    narrow = _narrow(config, values)
    for changes in (narrow, _with_mixers(config, values, narrow), {}):
        try:
            yield type(config).from_dict({**values, **few, **changes})
        except Exception:  # config classes reject values with any exception
            continue


def _few(config: PreTrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that leave few layers and words, and short windows."""
    few = _few_layers(config, values)
    few |= {
        name: min(value, WINDOW)
        for name, value in values.items()
        if type(value) is int and ("window" in name or "chunk" in name) and "layer" not in name and value > 0
    }
    few |= _early_switch(values)
    few[config.attribute_map.get("vocab_size", "vocab_size")] = VOCABULARY
    return few | {
        name: index
        for index, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"))
        if values.get(name) is not None
    }


def _early_switch(values: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that make LongRoPE switch at `SWITCH` tokens, in all layers or in those of some types."""
    key = "original_max_position_embeddings"

    def early(parameters: Any) -> Any:
        if not isinstance(parameters, dict):
            return parameters
        inner = {name: early(value) for name, value in parameters.items()}
        return {**inner, key: SWITCH} if inner.get("rope_type") == LONGROPE else inner

    parameters = early(values.get("rope_parameters"))
    if parameters == values.get("rope_parameters"):
        return {}
    return {"rope_parameters": parameters} | ({key: SWITCH} if key in values else {})


def _few_layers(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that leave one layer of each kind, at least two layers.

    The kind of a layer is its entry in every list that is as long as there are layers.
    """
    count = config.num_hidden_layers
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == count and name != "architectures"
    }
    kinds: dict[str, int] = {}
    for index in range(count):
        kinds.setdefault(repr([value[index] for value in lists.values() if not _layer_numbers(value)]), index)
    chosen = sorted(kinds.values()) if len(kinds) > 1 else list(range(min(2, count)))
    few: dict[str, Any] = {name: [value[index] for index in chosen] for name, value in lists.items()}
    for name, value in values.items():
        if isinstance(value, dict) and value and all(str(key).isdecimal() for key in value):
            by_layer = {int(key): each for key, each in value.items()}
            few[name] = {new: by_layer[old] for new, old in enumerate(chosen) if old in by_layer}
    few[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    return few


def _layer_numbers(values: Sequence[Any]) -> bool:
    """Return True if a list holds distinct integers: numbers of layers, not kinds."""
    return all(type(value) is int for value in values) and len(set(values)) == len(values)


def _narrow(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that leave small widths. Heads keep their width: other settings depend on it."""

    def own(name: str) -> str:
        return str(config.attribute_map.get(name, name))

    def is_set(name: str) -> bool:
        return type(values.get(own(name))) is int

    narrow = {own(name): min(values[own(name)], WIDTH) for name in _WIDTHS if is_set(name)}
    narrow |= {own(name): min(values[own(name)], EXPERTS) for name in _EXPERTS if is_set(name)}
    narrow |= {own(name): min(values[own(name)], 2) for name in _EXPERTS_PER_TOKEN if is_set(name)}
    width = config.hidden_size
    narrow[own("hidden_size")] = min(width, WIDTH)
    if is_set("num_attention_heads"):
        heads = values[own("num_attention_heads")]
        few = min(heads, HEADS)
        narrow[own("num_attention_heads")] = few
        for name in filter(is_set, _SHARED_HEADS):
            shared = values[own(name)]
            narrow[own(name)] = few if shared == heads else 1 if shared == 1 else max(1, few // 2)
        head_dim = values.get("head_dim") or width // heads
        if not is_set("head_dim") or head_dim * heads == width:
            narrow[own("hidden_size")] = few * head_dim
    # other widths that equal the layers', such as that of OPT's embedding, shrink with them
    alike = {name for name, value in values.items() if value == width and name.endswith("_dim")}
    return {**dict.fromkeys(alike, narrow[own("hidden_size")]), **narrow}


def _with_mixers(config: Any, values: dict[str, Any], narrow: dict[str, Any]) -> dict[str, Any]:
    """Add fewer heads of other mixers than attention, such as state spaces, in proportion to the width."""
    name = config.attribute_map.get("hidden_size", "hidden_size")
    fewer = {
        each: max(1, value * narrow[name] // values[name])
        for each, value in values.items()
        if type(value) is int and each.endswith("heads")
    }
    groups = {each: 1 for each, value in values.items() if type(value) is int and each.endswith("n_groups")}
    return {**fewer, **groups, **narrow}
