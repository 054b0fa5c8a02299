"""Small copies of a model's config, in which every kind of its layers is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 64
WIDTH = 64
WINDOW = 4
HEADS = 4
EXPERTS = 4

# by the names that the library's configs use: what layers are wide, many experts, or chosen ones of them
_WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
_SHARED = ("num_key_value_heads", "num_kv_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")


def small_copies(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Copies of few layers and words: first of small widths, then of the config's own.

    Windows are made shorter than any text that is tried. Yields those that the config's class takes.
    """
    values = config.to_dict()
    own = config.attribute_map
    few = _few_layers(config, values)
    few |= {
        name: min(value, WINDOW)
        for name, value in values.items()
        if type(value) is int and ("window" in name or "chunk" in name) and "layer" not in name and value > 0
    }
    few[own.get("vocab_size", "vocab_size")] = VOCABULARY
    few |= {
        name: index
        for index, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"))
        if values.get(name) is not None
    }
    for changes in ({**few, **_narrow(config, values)}, few):
        try:
            yield type(config).from_dict({**values, **changes})
        except Exception:  # a config's class refuses in any way it likes
            continue


def _few_layers(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, two at least. Lists as long as there are layers say what kind each is."""
    count = config.num_hidden_layers
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == count and name != "architectures"
    }
    kinds: dict[str, int] = {}
    for index in range(count):
        kinds.setdefault(repr([value[index] for value in lists.values() if not _numbers(value)]), index)
    chosen = sorted(kinds.values()) if len(kinds) > 1 else list(range(min(2, count)))
    few: dict[str, Any] = {name: [value[index] for index in chosen] for name, value in lists.items()}
    few[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    return few


def _numbers(values: Sequence[Any]) -> bool:
    """Whether a list holds the numbers of layers, which all differ, and no kinds."""
    return all(type(value) is int for value in values) and len(set(values)) == len(values)


def _narrow(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Small widths. Heads keep their width, which much else is made for."""

    def own(name: str) -> str:
        return str(config.attribute_map.get(name, name))

    def holds(name: str) -> bool:
        return type(values.get(own(name))) is int

    narrow = {own(name): min(values[own(name)], WIDTH) for name in _WIDTHS if holds(name)}
    narrow |= {own(name): min(values[own(name)], EXPERTS) for name in _EXPERTS if holds(name)}
    narrow |= {own(name): min(values[own(name)], 2) for name in _CHOSEN if holds(name)}
    width = config.hidden_size
    narrow[own("hidden_size")] = min(width, WIDTH)
    if not holds("num_attention_heads"):
        return _widened(narrow, values, width, narrow[own("hidden_size")])
    heads = values[own("num_attention_heads")]
    few = min(heads, HEADS)
    narrow[own("num_attention_heads")] = few
    for name in filter(holds, _SHARED):
        shared = values[own(name)]
        narrow[own(name)] = few if shared == heads else 1 if shared == 1 else max(1, few // 2)
    head_dim = values.get("head_dim") or width // heads
    if not holds("head_dim") or head_dim * heads == width:
        narrow[own("hidden_size")] = few * head_dim
    return _widened(narrow, values, width, narrow[own("hidden_size")])


def _widened(narrow: dict[str, Any], values: dict[str, Any], width: int, small: int) -> dict[str, Any]:
    """With other dimensions that are as wide as the layers, such as OPT's embedding, as narrow as they."""
    alike = {name: small for name, value in values.items() if value == width and name.endswith("_dim")}
    return {**alike, **narrow}
