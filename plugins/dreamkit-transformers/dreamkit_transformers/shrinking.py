"""Small copies of a model's config, in which every kind of its layers is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedConfig

VOCABULARY = 64
HEAD_DIM = 16  # of models without heads
WINDOW = 4
HEADS = 4
WIDTH = HEADS * HEAD_DIM
FEWER_HEADS = 2
EXPERTS = 4
SHORT = 8  # tokens

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


def small_copies(config: PreTrainedConfig, deeper: bool = False) -> Iterator[PreTrainedConfig]:
    """Copies of few layers and words: first of small widths, then of the config's own.

    Windows are made shorter than any text that is tried. `deeper` ones have one more layer, and are narrower where
    they can be. Yields those that the config's class takes.
    """
    values = config.to_dict()
    few = _few(config, values, deeper)
    narrow = [_narrow(config, values, heads) for heads in ((FEWER_HEADS, HEADS) if deeper else (HEADS,))]
    for changes in (*narrow, *(_with_mixers(config, values, each) for each in narrow), {}):
        try:
            yield type(config).from_dict({**values, **few, **changes})
        except Exception:  # a config's class refuses in any way it likes
            continue


def limited_copies(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    """For each number of the config that is in its small copy too, its name and a copy in which it is small."""
    own = config.to_dict()
    for small in small_copies(config):
        values = small.to_dict()
        for name, value in values.items():
            if type(value) is int and value > SHORT and value == own[name]:
                try:
                    yield name, type(config).from_dict({**values, name: SHORT})
                except Exception:  # it goes together with others
                    continue
        return


def _few(config: PreTrainedConfig, values: dict[str, Any], deeper: bool) -> dict[str, Any]:
    few = _few_layers(config, values, deeper)
    few |= {
        name: min(value, WINDOW)
        for name, value in values.items()
        if type(value) is int and ("window" in name or "chunk" in name) and "layer" not in name and value > 0
    }
    few[config.attribute_map.get("vocab_size", "vocab_size")] = VOCABULARY
    return few | {
        name: index
        for index, name in enumerate(("pad_token_id", "bos_token_id", "eos_token_id"))
        if values.get(name) is not None
    }


def _few_layers(config: Any, values: dict[str, Any], deeper: bool) -> dict[str, Any]:
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
    chosen += chosen[-1:] if deeper else []
    few: dict[str, Any] = {name: [value[index] for index in chosen] for name, value in lists.items()}
    for name, value in values.items():
        if (
            isinstance(value, dict) and value and all(str(key).isdecimal() for key in value)
        ):  # by layers' numbers
            by_layer = {int(key): each for key, each in value.items()}
            few[name] = {new: by_layer[old] for new, old in enumerate(chosen) if old in by_layer}
    few[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(chosen)
    return few


def _numbers(values: Sequence[Any]) -> bool:
    """Whether a list holds the numbers of layers, which all differ, and no kinds."""
    return all(type(value) is int for value in values) and len(set(values)) == len(values)


def _narrow(config: Any, values: dict[str, Any], most_heads: int) -> dict[str, Any]:
    """Small widths. Heads keep their width, which much else is made for."""

    def own(name: str) -> str:
        return str(config.attribute_map.get(name, name))

    def holds(name: str) -> bool:
        return type(values.get(own(name))) is int

    narrow = {own(name): min(values[own(name)], WIDTH) for name in _WIDTHS if holds(name)}
    narrow |= {own(name): min(values[own(name)], EXPERTS) for name in _EXPERTS if holds(name)}
    narrow |= {own(name): min(values[own(name)], 2) for name in _CHOSEN if holds(name)}
    width = config.hidden_size
    narrow[own("hidden_size")] = min(width, most_heads * HEAD_DIM)
    if not holds("num_attention_heads"):
        return _widened(narrow, values, width, narrow[own("hidden_size")])
    heads = values[own("num_attention_heads")]
    few = min(heads, most_heads)
    narrow[own("num_attention_heads")] = few
    for name in filter(holds, _SHARED):
        shared = values[own(name)]
        narrow[own(name)] = few if shared == heads else 1 if shared == 1 else max(1, few // 2)
    head_dim = values.get("head_dim") or width // heads
    if not holds("head_dim") or head_dim * heads == width:
        narrow[own("hidden_size")] = few * head_dim
    return _widened(narrow, values, width, narrow[own("hidden_size")])


def _with_mixers(config: Any, values: dict[str, Any], narrow: dict[str, Any]) -> dict[str, Any]:
    """With other heads than attention's, such as a state space's, as much fewer as the layers are narrower."""
    name = config.attribute_map.get("hidden_size", "hidden_size")
    if name not in narrow:
        return narrow
    fewer = {
        each: max(1, value * narrow[name] // values[name])
        for each, value in values.items()
        if type(value) is int and each.endswith("heads")
    }
    groups = {each: 1 for each, value in values.items() if type(value) is int and each.endswith("n_groups")}
    return {**fewer, **groups, **narrow}


def _widened(narrow: dict[str, Any], values: dict[str, Any], width: int, small: int) -> dict[str, Any]:
    """With other dimensions that are as wide as the layers, such as OPT's embedding, as narrow as they."""
    alike = {name: small for name, value in values.items() if value == width and name.endswith("_dim")}
    return {**alike, **narrow}
