"""Every key of a model's config is computed with, as in the library's own forward pass, or refused by name."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from dreamkit import ConfigError, SourceError
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.description import USUAL
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from dreamkit_transformers.tokenizers import byte_tokenizer
from dreamkit_transformers.vision import VisionConfig
from small_language import SMALL, positions

# of every config: notes, forms of outputs, and keys of other models
COMMON = {
    *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id", "problem_type"),
}
DROPOUT = {
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "drop_path_rate"),
}
# of initial weights, and of the library's own generation
LANGUAGE_UNUSED = {"initializer_range", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}
LANGUAGE_REFUSED = {"use_bidirectional_attention"}
WINDOWS = ["full_attention", "sliding_attention"]
LANGUAGE: dict[str, Any] = {  # values unlike the defaults, all at once
    **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
    "vocab_size": 260,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "rms_norm_eps": 0.1,
    "layer_norm_eps": 0.1,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "pretraining_tp": 2,
    "qk_layernorm": True,
    "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
    "original_max_position_embeddings": 16,
    "query_pre_attn_scalar": 3,
    "sliding_window": 3,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "layer_types": WINDOWS,
    "final_logit_softcapping": 0.5,
    "attn_logit_softcapping": 0.5,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [4.0, 8.0, 9.0, 9.5],
    "original_max_position_embeddings": 16,
}
OF_TYPE: dict[str, dict[str, Any]] = {
    "phi3": {"rope_parameters": LONGROPE, "pad_token_id": 0, "eos_token_id": 2, "hidden_act": "silu"},
}

VISION_UNUSED = {
    *("initializer_range", "initializer_factor", "use_mask_token"),
    "projection_dim",  # of the whole CLIP
    "vision_use_head",  # of the pooled vector
    *(
        "_out_features",
        "_out_indices",
        "apply_layernorm",
        "reshape_hidden_states",
    ),  # of the library's backbones
}
VISION_REFUSED = {"num_channels"}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_patches": 4,
    "hidden_act": "relu",
    "layer_norm_eps": 0.1,
    "mlp_ratio": 2,
    "qkv_bias": False,
    "layerscale_value": 0.3,
    "use_swiglu_ffn": True,
    "num_register_tokens": 2,
}
CROPPED = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
TOWERS: dict[str, tuple[Any, str, str, dict[str, Any]]] = {  # part, model, processor and its values
    "clip": (Clip, "CLIPVision", "CLIPImageProcessor", CROPPED),
    "siglip": (Siglip, "SiglipVision", "SiglipImageProcessor", {"size": {"height": 16, "width": 16}}),
    "naflex": (Siglip2, "Siglip2Vision", "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 4}),
    "dinov2": (Dinov2, "Dinov2", "BitImageProcessor", CROPPED),
    "registers": (Dinov2, "Dinov2WithRegisters", "BitImageProcessor", CROPPED),
}
SAME = {"hidden_act", "tie_word_embeddings"}  # as the defaults of a few classes
QUANTIZED = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def values_of(kind: Any, values: dict[str, Any], **others: Any) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    # the library changes dicts in place
    return {key: deepcopy(value) for key, value in (values | others).items() if key in names}


def randomize(model: Any) -> Any:
    """Change all weights, since the initial biases, scales and registers may have no effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def language_model(folder: Path, model_type: str) -> Any:
    kind: Any = CONFIG_MAPPING[model_type]
    torch.manual_seed(0)
    config = kind(**values_of(kind, LANGUAGE, **OF_TYPE.get(model_type, {})))
    model = randomize(MODEL_FOR_CAUSAL_LM_MAPPING[kind](config))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def tower(folder: Path, name: str) -> Any:
    _, model, processor, values = TOWERS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, f"{model}Config")
    written = randomize(getattr(transformers, f"{model}Model")(kind(**values_of(kind, VISION))))
    written.save_pretrained(folder)
    getattr(transformers, processor)(**values).save_pretrained(folder)
    return written


@pytest.mark.parametrize("model_type", sorted(USUAL))
@torch.no_grad()
def test_packed_logits_with_unusual_values_equal_the_librarys(model_type: str, tmp_path: Path) -> None:
    model = language_model(tmp_path, model_type)
    edit(tmp_path, return_dict=False, output_hidden_states=True)
    part = CausalLM.from_pretrained(LanguageConfig(pretrained=str(tmp_path))).eval()
    lengths = [20, 11]
    row = torch.randint(3, 260, (1, sum(lengths)))
    actual = part.logits(part.final_norm(part(part.embed(row), *positions(*lengths))))
    for ids, logits in zip(row.split(lengths, 1), actual.split(lengths, 1), strict=True):
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_features_with_unusual_values_equal_the_librarys(name: str, tmp_path: Path) -> None:
    model = tower(tmp_path, name)
    edit(tmp_path, return_dict=False, output_hidden_states=True)
    part = TOWERS[name][0].from_pretrained(VisionConfig(pretrained=str(tmp_path), layer=-1)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    inputs = part.architecture.forward_arguments(model.config, pixels)
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(part(pixels), expected[:, part.architecture.prefix_tokens(model.config) :])


@pytest.mark.parametrize("model_type", sorted(USUAL))
def test_every_key_of_an_installed_language_models_config_is_listed(model_type: str) -> None:
    listed = COMMON | DROPOUT | LANGUAGE_UNUSED | LANGUAGE_REFUSED | LANGUAGE.keys()
    assert {field.name for field in fields(CONFIG_MAPPING[model_type])} <= listed


@pytest.mark.parametrize("name", TOWERS)
def test_every_key_of_an_installed_towers_config_is_listed(name: str) -> None:
    listed = COMMON | DROPOUT | VISION_UNUSED | VISION_REFUSED | VISION.keys()
    assert {field.name for field in fields(getattr(transformers, f"{TOWERS[name][1]}Config"))} <= listed


@pytest.mark.parametrize("values", [LANGUAGE, VISION], ids=["language", "vision"])
def test_the_values_are_not_the_defaults(values: dict[str, Any]) -> None:
    kinds = (
        [CONFIG_MAPPING[model_type] for model_type in USUAL]
        if values is LANGUAGE
        else [getattr(transformers, f"{model}Config") for _, model, *_ in TOWERS.values()]
    )
    for kind in kinds:
        for field in fields(kind):
            assert field.name not in values or values[field.name] != field.default or field.name in SAME


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantized_weights_are_refused_by_name(key: str, tmp_path: Path) -> None:
    language, vision = tmp_path / "language", tmp_path / "vision"
    language_model(language, "llama")
    tower(vision, "clip")
    for folder, infer_spec, config in (
        (language, CausalLM.infer_spec, LanguageConfig(pretrained=str(language))),
        (vision, Clip.infer_spec, VisionConfig(pretrained=str(vision))),
    ):
        edit(folder, **{key: QUANTIZED})
        with pytest.raises(
            SourceError, match=rf"config\.json: {key}: expected weights of floats.*bitsandbytes"
        ):
            infer_spec(config)


@pytest.mark.parametrize(
    ("key", "model_type"), [("use_bidirectional_attention", "gemma"), ("is_encoder_decoder", "llama")]
)
def test_a_model_that_is_not_causal_is_refused_by_name(key: str, model_type: str, tmp_path: Path) -> None:
    language_model(tmp_path, model_type)
    edit(tmp_path, **{key: True})
    with pytest.raises(ConfigError, match=rf"\({key}\)"):
        CausalLM.infer_spec(LanguageConfig(pretrained=str(tmp_path)))
