"""Specs of language models from files and settings, and errors in these."""

import json
from dataclasses import replace

import pytest
from transformers import MistralConfig, MistralForCausalLM

from dreamkit import ConfigError, SourceError
from dreamkit_transformers.causal_lm import LanguageConfig
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer
from small_language import SMALL, SPEC, make, write


def test_files_and_config_determine_the_spec(tmp_path):
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
    for build in (Llama.infer_spec, Llama.from_pretrained):
        with pytest.raises(SourceError, match="weights"):
            build(config)


@pytest.mark.parametrize(
    ("change", "key", "parts"),
    [
        (
            {"hidden_sise": 8},
            "config.hidden_sise",
            ["unknown key 'hidden_sise'", "did you mean 'hidden_size'?"],
        ),
        ({"hidden_size": 32.0}, "config.hidden_size", ["expected int"]),
        ({"num_attention_heads": 5}, "config", ["32", "5"]),
        ({"num_key_value_heads": 3}, "config", ["cannot build a model"]),
        ({"num_hidden_layers": 10**5}, "config.num_hidden_layers", ["expected at most 1000, got 100000"]),
        ({"vocab_size": 100}, "config.vocab_size", ["at least 260", "got 100"]),
        ({"max_position_embeddings": 0}, "config.max_position_embeddings", ["expected at least 1, got 0"]),
        ({"hidden_act": "gleu"}, "config.hidden_act", ["got 'gleu'; did you mean 'gelu'?"]),
        ({"rope_parameters": {"rope_type": "yarm"}}, "config", ["yarm"]),
    ],
)
def test_an_invalid_config_value_is_an_error_at_its_key(change, key, parts):
    with pytest.raises(ConfigError) as caught:
        Llama.infer_spec(LanguageConfig(config={**SMALL, **change}))
    ((actual_key, message),) = caught.value.problems.items()
    assert actual_key == key and all(part in message for part in parts), message


def test_all_errors_of_a_section_are_reported_together(tmp_path):
    invalid = {"hidden_sise": 8, "hidden_act": "gleu", "vocab_size": 0, "rms_norm_eps": "small"}
    config = LanguageConfig(config={**SMALL, **invalid}, tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as caught:
        Llama.infer_spec(config)
    assert caught.value.problems.keys() == {"tokenizer", *(f"config.{name}" for name in invalid)}


def test_meta_modules_of_a_source_have_the_names_of_the_part(tmp_path):
    folder, _ = write(tmp_path)
    part = Llama.meta_modules(LanguageConfig(pretrained=folder))
    assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
    assert [name for name, _ in part.named_modules()] == [name for name, _ in make().named_modules()]


def test_a_source_of_another_model_or_with_missing_files_is_an_error(tmp_path):
    folder, _ = write(tmp_path, MistralForCausalLM, MistralConfig)
    config = LanguageConfig(pretrained=folder)
    with pytest.raises(SourceError, match="expected model_type 'llama', got 'mistral'"):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: expected at most 1000, got 1000000000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected at least 1, got 0"),
        ({"attention_dropout": 1e9}, "attention_dropout: expected a probability from 0 to 1"),
        ({"num_key_value_heads": 3}, "cannot build a model from it: "),
        ({"rms_norm_eps": {"a": 1}}, "invalid for LlamaConfig: "),
        ({"rope_parameters": {"rope_type": "yarm"}}, "yarm"),
    ],
)
def test_a_source_whose_config_makes_no_model_is_refused_with_its_file(tmp_path, change, message):
    folder, _ = write(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (tmp_path / "model.safetensors").write_bytes(b"")  # the refusal comes before any weights are read
    with pytest.raises(ConfigError) as caught:
        Llama.from_pretrained(LanguageConfig(pretrained=folder))
    assert message in str(caught.value) and folder in str(caught.value)


def test_a_config_with_fewer_layers_than_the_weights_is_refused(tmp_path):
    folder, _ = write(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    assert values["num_hidden_layers"] > 1
    file.write_text(json.dumps(values | {"num_hidden_layers": 1}))
    with pytest.raises(
        SourceError, match=r"do not fit .*expected no model\.layers\.1\..*, which is of more layers"
    ):
        Llama.from_pretrained(LanguageConfig(pretrained=folder))
