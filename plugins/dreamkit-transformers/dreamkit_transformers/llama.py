"""LLaMA, and Vicuna, which is LLaMA that was taught another chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from dreamkit import ChatTemplate
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Llama(CausalLM):
    """LLaMA, arXiv 2302.13971, with the chat template of LLaMA 2, arXiv 2307.09288.

    LLaMA 2 was shown a system message within the first user turn; here it stands before it.
    """

    model_types = ("llama",)
    config_class = LlamaConfig
    model_class = LlamaForCausalLM
    adapter_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        return ChatTemplate(
            user=("[INST]", "[/INST]"),
            assistant=("", tokenizer.eos_token),
            system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        )


@dataclass(frozen=True, kw_only=True)
class VicunaConfig(LanguageConfig):
    """`system_prompt` is said where a conversation has no system message: None is Vicuna's, "" none."""

    system_prompt: str | None = None


class Vicuna(Llama):
    """LLaMA with the template of Vicuna 1.1 and later (FastChat's `vicuna_v1.1`)."""

    Config = VicunaConfig

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        own: str | None = config.system_prompt
        return ChatTemplate(
            user=("USER:", ""),
            assistant=("ASSISTANT:", tokenizer.eos_token),
            default_system=VICUNA_SYSTEM_PROMPT if own is None else own,
        )
