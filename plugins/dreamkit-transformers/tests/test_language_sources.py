"""What files and settings say of a language model, and what is wrong with them."""

import json
from dataclasses import replace

import pytest
from transformers import MistralConfig, MistralForCausalLM

from dreamkit import ConfigError, SourceError
from dreamkit_transformers.causal_lm import LanguageConfig
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from small_language import SMALL, SPEC, make, write


def test_the_spec_of_a_source(tmp_path):
    folder, _ = write(tmp_path)
    config = LanguageConfig(pretrained=folder)
    assert Llama.infer_spec(config) == SPEC == Llama.from_pretrained(config).spec
    assert Llama.infer_spec(LanguageConfig(config=SMALL)) == SPEC == make().spec
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [9, 2, 8]}))
    assert Llama.infer_spec(config).eos_ids == (2, 9, 8)
    assert len(Llama.infer_spec(config).reserved_tokens) == 5
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"not tensors: a spec needs none, but they must be there")
    assert Llama.infer_spec(config).dim == 32
    weights.unlink()
    for made in (Llama.infer_spec, Llama.from_pretrained):
        with pytest.raises(SourceError, match="weights"):
            made(config)


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"hidden_sise": 8}, "config.hidden_sise", ["'hidden_sise'", "'hidden_size'"]),
        ({"hidden_size": 32.0}, "config.hidden_size", ["expected int"]),
        ({"num_attention_heads": 5}, "config", ["32", "5"]),
        ({"num_key_value_heads": 3}, "config", ["no model can be made"]),
        ({"num_hidden_layers": 10**5}, "config.num_hidden_layers", ["100000 found", "at most 1000"]),
        ({"vocab_size": 100}, "config.vocab_size", ["260 tokens", "100"]),
        ({"max_position_embeddings": 0}, "config.max_position_embeddings", ["0 found, but at least 1"]),
        ({"hidden_act": "gleu"}, "config.hidden_act", ["'gleu' found", "did you mean 'gelu'?"]),
        ({"rope_parameters": {"rope_type": "yarm"}}, "config", ["yarm"]),
    ],
)
def test_a_config_that_makes_no_model(change, key, words):
    with pytest.raises(ConfigError) as caught:
        Llama.infer_spec(LanguageConfig(config={**SMALL, **change}))
    ((found, said),) = caught.value.problems.items()
    assert found == key and all(word in said for word in words), said


def test_all_that_is_wrong_with_a_section_is_told_at_once(tmp_path):
    wrong = {"hidden_sise": 8, "hidden_act": "gleu", "vocab_size": 0, "rms_norm_eps": "small"}
    config = LanguageConfig(config={**SMALL, **wrong}, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as caught:
        Llama.infer_spec(config)
    assert caught.value.problems.keys() == {"tokenizer", *(f"config.{name}" for name in wrong)}


def test_an_outline_has_the_modules_of_the_part(tmp_path):
    folder, _ = write(tmp_path)
    for config in (LanguageConfig(pretrained=folder), LanguageConfig(config=SMALL)):
        outline = Llama.meta_modules(config)
        assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
        assert [name for name, _ in outline.named_modules()] == [name for name, _ in make().named_modules()]


def test_sources_that_do_not_fit(tmp_path):
    folder, _ = write(tmp_path, MistralForCausalLM, MistralConfig)
    config = LanguageConfig(pretrained=folder)
    with pytest.raises(SourceError, match="model_type 'mistral', but 'llama' is needed"):
        Llama.infer_spec(config)
    write(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"lacks 'tokenizer\.json' or 'tokenizer\.model'"):
        Llama.infer_spec(config)
    other = tmp_path / "other"
    byte_tokenizer().save_pretrained(other)
    assert Llama.from_pretrained(replace(config, tokenizer=str(other))).spec == SPEC
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="lacks weights"):
        Llama.from_pretrained(replace(config, tokenizer=str(other)))
