"""Small language models of transformers: as parts, and as folders in the library's format."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from dreamkit import LanguageSpec
from dreamkit_transformers.families import Mistral
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.tokenizers import byte_tokenizer

SWITCH = 12  # tokens of a document before LongRoPE switches its factors
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": SWITCH,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MAMBA2 = {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "n_groups": 2, "num_hidden_layers": 2}
LFM2 = {  # convolutions over some tokens, and attention
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "full_attn_idxs": [1, 3],
}
NEXT = {  # linear attention, which ignores masks and positions
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
SPEC = LanguageSpec(
    dim=32,
    vocab_size=260,
    max_length=64,
    bos_id=1,
    eos_ids=(2,),
    pad_id=0,
    reserved_tokens=("<pad>", "<s>", "</s>"),
    document_attention=True,
)
TOKENS = ["<dream_start>", "<dream_end>", "</s>"]


def make(family: Any = Llama, seed: int = 0, **config: Any) -> Any:
    """Build a small part; that of Mistral has a sliding window shorter than the documents of these tests."""
    torch.manual_seed(seed)
    if family is Mistral:
        config = {"sliding_window": 3, **config}
    return family.from_config(family.Config(config={**SMALL, **config})).eval()


def write(
    folder: Path, kind: Any = LlamaForCausalLM, config_kind: Any = LlamaConfig, **config: Any
) -> tuple[str, Any]:
    """Write a model with a changed config in the library's format; return the folder's name and the model."""
    torch.manual_seed(0)
    model = kind(config_kind(vocab_size=260, **SMALL, **config))
    byte_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder), model.eval()


def positions(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return positions and segments (1, T) of one row of documents of these lengths."""
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    segment_ids = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)])[None]
    return position_ids, segment_ids


def library_model(part: Any) -> Any:
    """Return a copy of the library's model behind `part`, with its final norm, so that its `generate` can be called."""
    part = copy.deepcopy(part)
    part.model.model.norm = part.norm
    return part.model
