"""The contract checks of the language models, with their tiny configs and with other settings."""

from __future__ import annotations

import pytest

from chat_tokenizers import TEMPLATES, TOKENIZERS
from dreamkit.testing import contracts
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.families import Gemma, Mistral, Phi, Qwen
from dreamkit_transformers.llama import Llama, Vicuna
from forms import form
from small_language import LFM2, MAMBA2


@contracts.parametrize("language_model", contracts.tiny_part(CausalLM))
def test_causal_lm(check):
    check()


@contracts.parametrize("language_model", contracts.tiny_part(Gemma))
def test_gemma(check):
    check()


@contracts.parametrize("language_model", contracts.tiny_part(Llama))
def test_llama(check):
    check()


@contracts.parametrize("language_model", form(Mistral, config={"sliding_window": 4}))
def test_mistral_with_a_short_window(check):
    check()


ALIBI = {"model_type": "bloom", "n_head": 4, "n_layer": 2}
MAMBA = {"model_type": "mamba", "state_size": 4, "num_hidden_layers": 2}
UNSET = ("intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")


def recurrent(config):
    """Return a function that builds a model whose cache takes no padding."""
    return lambda: CausalLM.from_config(LanguageConfig(config=config))


@pytest.mark.parametrize(
    "build",
    [
        contracts.tiny_part(Phi),
        contracts.tiny_part(Qwen),
        contracts.tiny_part(Vicuna),
        form(Llama, config={"tie_word_embeddings": True}),
        form(Llama, config={"vocab_size": 270}),
        form(Vicuna, system_prompt=""),
        form(
            Gemma, ("query_pre_attn_scalar", "layer_types", "sliding_window"), config={"model_type": "gemma"}
        ),
        form(Gemma, config={"model_type": "gemma3_text"}),
        form(Phi, config={"model_type": "phi"}),
        form(Qwen, ("head_dim",), config={"model_type": "qwen2"}),
        form(CausalLM, UNSET, config=ALIBI),
        form(CausalLM, UNSET, config=MAMBA),
        recurrent({"model_type": "mamba2", **MAMBA2}),
    ],
    ids=[
        *("phi", "qwen", "vicuna", "tied", "padded vocabulary", "no system prompt"),
        *("gemma 1", "gemma 3", "phi 2", "qwen 2", "alibi", "mamba", "mamba 2"),
    ],
)
def test_other_settings_keep_the_contract(build):
    report = contracts.verify("language_model", build, quick=True)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "check",
    ["cached_decoding", "selected_rows", "joined_rows", "truncated_rows", "copied_rows", "refused_rows"],
)
def test_states_and_attention_in_one_cache_keep_its_contract(check):
    report = contracts.verify("language_model", recurrent({"model_type": "lfm2", **LFM2}), only=check)
    assert report.ok, str(report)


@pytest.mark.parametrize("template", ["zephyr", "decorates the last answer", "thinks in the prompt"])
def test_a_template_of_the_tokenizer_keeps_the_contract(template, tmp_path):
    tokenizer = TOKENIZERS["sentencepiece"]()
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(tmp_path)
    report = contracts.verify("language_model", form(Llama, tokenizer=str(tmp_path)), quick=True)
    assert report.ok, str(report)
