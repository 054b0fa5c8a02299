"""The settings for writing text in a model's own files.

A recipe's `generation` decides how tokens are sampled. Rules about certain tokens are honoured, or refused by name. A
warning names other keys that change the text. A test compares the lists of keys with the library's class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dreamkit import SourceError, excerpt, read_json

HONOURED: Final = ("eos_token_id", "suppress_tokens")
# keys of sampling, which a recipe's `generation` decides, with the values that have no effect besides null
SAMPLING: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("do_sample", "renormalize_logits"), (False,)),
    **dict.fromkeys(("temperature", "top_p", "typical_p"), (1,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("min_p", "top_h", "max_time", "max_new_tokens"), ()),
    "max_length": (20,),  # the library's earlier default, which it wrote to files
    "top_k": (0, 50),
}
# keys that also change the text of the most likely tokens; a recipe has settings of its own for some
GREEDY: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "diversity_penalty", "penalty_alpha"), (0,)),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1,)),
    "early_stopping": (False,),
    "stop_strings": ([],),
    "dola_layers": (),
}
# rules for certain tokens and other inputs, without which the text would be wrong
REFUSED: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("bad_words_ids", "begin_suppress_tokens", "force_words_ids", "constraints"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    "watermarking_config": (),
    "sequence_bias": ({}, []),
    "guidance_scale": (1,),
    "token_healing": (False,),
}
# other tokens are the tokenizer's; the rest concerns the library's speed, memory and returned values
OTHER: Final = frozenset(
    (
        *("bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"),
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
        *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
        *("num_return_sequences", "output_attentions", "output_hidden_states", "output_logits"),
        *("output_scores", "return_dict_in_generate", "remove_invalid_values"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "use_mtp"),
        *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
        *("assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        "speculation_type",
    )
)


@dataclass(frozen=True)
class GenerationSettings:
    """The end tokens, the tokens never to write, and the names of settings without effect.

    A recipe's `generation` decides those of `replaced`. Those of `unsupported` also change the most likely text.
    """

    eos_ids: tuple[int, ...] = ()
    suppressed_ids: frozenset[int] = frozenset()
    replaced: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


def read_generation(folder: Path, rows: int) -> GenerationSettings:
    """Read `generation_config.json` or, without that file, `config.json`, as the library does.

    `rows` is the number of tokens of the model.

    Raises:
        SourceError: a value is not a list of token ids, or changes the text in a way that dreamkit does not support.
    """
    file = folder / "generation_config.json"
    file = file if file.is_file() else folder / "config.json"
    values = {key: value for key, value in read_json(file).items() if value is not None}
    refused = [key for key, neutral in REFUSED.items() if values.get(key) not in (None, *neutral)]
    if refused:
        raise SourceError(
            f"{file}: {', '.join(refused)}: dreamkit has no such setting for writing text; remove "
            f"{'it' if len(refused) == 1 else 'them'}, or name a model without"
        )
    eos_ids, suppressed_ids = (_token_ids(file, key, values.get(key, [])) for key in HONOURED)
    if suppressed_ids and max(suppressed_ids) >= rows:
        raise SourceError(
            f"{file}: suppress_tokens: expected token ids below {rows}, got {max(suppressed_ids)}"
        )
    if both := sorted(set(eos_ids).intersection(suppressed_ids)):
        raise SourceError(f"{file}: suppress_tokens: expected no eos_token_id, got {both[0]}; remove it")
    replaced, unsupported = (
        tuple(key for key, neutral in keys.items() if values.get(key) not in (None, *neutral))
        for keys in (SAMPLING, GREEDY)
    )
    return GenerationSettings(eos_ids, frozenset(suppressed_ids), replaced, unsupported)


def _token_ids(file: Path, key: str, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise SourceError(
            f"{file}: {key}: expected a token id or a list of token ids, got {excerpt(json.dumps(value))}"
        )
    return tuple(ids)
