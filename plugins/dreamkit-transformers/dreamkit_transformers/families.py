"""Families of language models besides LLaMA: their model types, and their texts for tokenizers without a template."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate
from dreamkit_transformers.causal_lm import CausalLM
from dreamkit_transformers.chat import end_of_turn, named_turns
from dreamkit_transformers.llama import Llama, tiny_gated_config


class Mistral(CausalLM):
    """Mistral 7B, arXiv 2310.06825. A system message precedes the text of the first user turn."""

    model_types = ("mistral",)
    adapter_targets = Llama.adapter_targets

    @classmethod
    def tiny_config(cls) -> Any:
        return cls.Config(config=tiny_gated_config(sliding_window=8))

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        return ChatTemplate(
            user=("[INST]", "[/INST]"), assistant=("", str(tokenizer.eos_token)), system=("", "\n\n")
        )


class Qwen(CausalLM):
    """Qwen 2, 2.5 and 3, arXiv 2407.10671, 2412.15115 and 2505.09388, without a bos token.

    The texts for a tokenizer without a chat template are ChatML's.
    """

    model_types = ("qwen3", "qwen2")
    has_bos = False
    adapter_targets = Llama.adapter_targets

    @classmethod
    def tiny_config(cls) -> Any:
        return cls.Config(config=tiny_gated_config(head_dim=4))

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        return named_turns("<|im_start|>{role}\n", end_of_turn(tokenizer, "<|im_end|>") + "\n")


class Gemma(CausalLM):
    """Text models of Gemma 1, 2 and 3, arXiv 2403.08295, 2408.00118 and 2503.19786.

    Gemma was trained with the system message inside the first user turn; here the message precedes that turn.
    """

    model_types = ("gemma3_text", "gemma2", "gemma")
    adapter_targets = Llama.adapter_targets

    @classmethod
    def tiny_config(cls) -> Any:
        layer_types = ["sliding_attention", "full_attention"]
        sizes = tiny_gated_config(
            head_dim=4, query_pre_attn_scalar=4, sliding_window=8, layer_types=layer_types
        )
        return cls.Config(config={"model_type": "gemma2", **sizes})

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        end = end_of_turn(tokenizer, "<end_of_turn>") + "\n"
        return ChatTemplate(
            user=("<start_of_turn>user\n", end),
            assistant=("<start_of_turn>model\n", end),
            system=("", "\n\n"),
        )


class Phi(CausalLM):
    """Phi 1.5 and 2, arXiv 2309.05463, and Phi 3 and 4, arXiv 2404.14219 and 2412.08905, each with its own template."""

    model_types = ("phi3", "phi")

    @classmethod
    def tiny_config(cls) -> Any:
        return cls.Config(config=tiny_gated_config())

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        vocabulary = tokenizer.get_vocab()
        if "<|im_sep|>" in vocabulary:
            return named_turns("<|im_start|>{role}<|im_sep|>", "<|im_end|>")
        if "<|user|>" in vocabulary:
            return named_turns("<|{role}|>\n", "<|end|>\n")
        return ChatTemplate(
            user=("Instruct: ", "\n"), assistant=("Output: ", str(tokenizer.eos_token)), system=("", "\n")
        )
