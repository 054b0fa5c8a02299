"""A language model in bfloat16 against the library's own, over many positions."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.tokenizers import byte_tokenizer

POSITIONS = 1024  # rounded frequencies are wrong by radians there
SIZES = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def relative_error(actual, expected):
    return float((actual.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_logits_in_bfloat16_are_as_close_to_float32_as_the_librarys(tmp_path, model_type):
    torch.manual_seed(0)
    library = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES)).eval()
    with torch.no_grad():
        for parameter in library.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # sharp attention, which positions decide
    library.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    ids = torch.randint(3, 200, (1, POSITIONS))
    positions = torch.arange(POSITIONS)[None]
    part = CausalLM.from_pretrained(LanguageConfig(pretrained=str(tmp_path))).bfloat16().eval()
    with torch.no_grad():
        exact = library(ids).logits
        half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()(ids).logits
        actual = part.logits(part.final_norm(part(part.embed(ids), positions, torch.zeros_like(positions))))
    assert actual.dtype == torch.bfloat16
    errors = relative_error(actual, exact), relative_error(half, exact)
    print(f"{model_type}: {errors[0]:.4f}, the library {errors[1]:.4f}")
    assert errors[0] < 1.2 * errors[1]
