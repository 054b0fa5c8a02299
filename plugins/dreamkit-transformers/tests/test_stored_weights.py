"""Parts with weights as they are stored, mapped from their files."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Siglip2ImageProcessor,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.clip import Clip
from dreamkit_transformers.dinov2 import Dinov2
from dreamkit_transformers.siglip import Siglip, Siglip2
from dreamkit_transformers.tokenizers import byte_tokenizer
from dreamkit_transformers.vision import VisionConfig
from stored_weights import assert_stored_equals

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = {
    "vocab_size": 260,
    "hidden_size": 24,  # its square root, a scale of Gemma's, is rounded in half precision
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    "qwen3": {},
    "gpt_neox": {},
    "olmo2": {},
}
VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 5}
FIXED = {**VISION, "intermediate_size": 24, "image_size": 20}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"size": {"height": 20, "width": 20}}
CROP = {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}
TOWERS = {
    "clip": (Clip, CLIPVisionModel(CLIPVisionConfig(**FIXED)), CLIPImageProcessor(**CROP)),
    "siglip": (Siglip, SiglipVisionModel(SiglipVisionConfig(**FIXED)), SiglipImageProcessor(**SQUARE)),
    "siglip 2": (
        Siglip2,
        Siglip2VisionModel(Siglip2VisionConfig(**VISION, intermediate_size=24, num_patches=16)),
        Siglip2ImageProcessor(**HALF, patch_size=5, max_num_patches=16),
    ),
    "dinov2": (
        Dinov2,
        Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**VISION, mlp_ratio=2, image_size=20, num_register_tokens=3)
        ),
        CLIPImageProcessor(**CROP),
    ),
}


def write_language(folder, family, dtype, **saving):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split(",")[0], **(SIZES | FAMILIES[family]))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, **saving)
    byte_tokenizer().save_pretrained(folder)
    return LanguageConfig(pretrained=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_as_stored_is_the_loaded_one_after_a_cast(tmp_path, family, dtype):
    assert_stored_equals(CausalLM, write_language(tmp_path, family, dtype), tmp_path, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_shards_of_any_type_are_mapped(tmp_path, dtype):
    config = write_language(tmp_path, "llama", dtype, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    assert_stored_equals(CausalLM, config, tmp_path, dtype=dtype)


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_vision_tower_as_stored_is_the_loaded_one_after_a_cast(tmp_path, family, dtype):
    cls, model, processor = TOWERS[family]
    model.to(dtype).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert_stored_equals(cls, VisionConfig(pretrained=str(tmp_path)), tmp_path, dtype=dtype)


def test_weights_in_a_pickle_are_mapped(tmp_path):
    config = write_language(tmp_path, "llama", torch.bfloat16)
    file = tmp_path / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    assert_stored_equals(CausalLM, config, tmp_path, dtype=torch.bfloat16)


def test_layers_whose_experts_the_library_joins_are_unsupported(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1})
    assert CausalLM.from_stored(write_language(tmp_path, "mixtral", torch.bfloat16)) is None


def test_weights_of_two_types_and_old_pickles_are_unsupported(tmp_path):
    config = write_language(tmp_path, "llama", torch.bfloat16)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"] = state["model.norm.weight"].float()
    save_file(state, file, metadata={"format": "pt"})
    assert CausalLM.from_stored(config) is None
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    file.unlink()
    assert CausalLM.from_stored(config) is None
