"""LLaMA, and Vicuna: LLaMA trained with another chat template."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate
from dreamkit_transformers.causal_lm import CausalLM
from dreamkit_transformers.chat import named_turns
from dreamkit_transformers.description import LanguageConfig

log = logging.getLogger(__name__)

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class Llama(CausalLM):
    """LLaMA 1, 2 and 3, arXiv 2302.13971, 2307.09288 and 2407.21783.

    The texts for a tokenizer without a chat template are LLaMA 3's if the tokenizer has its tokens, else LLaMA 2's.
    LLaMA 2 was trained with the system message inside the first user turn; here the message precedes that turn.
    """

    model_types = ("llama",)
    adapter_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @classmethod
    def tiny_config(cls) -> Any:
        return cls.Config(config=tiny_gated_config())

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        if "<|start_header_id|>" in tokenizer.get_vocab():
            return named_turns("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")
        return ChatTemplate(
            user=("[INST]", "[/INST]"),
            assistant=("", str(tokenizer.eos_token)),
            system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        )


@dataclass(frozen=True, kw_only=True)
class VicunaConfig(LanguageConfig):
    """Settings of Vicuna.

    `system_prompt` is the system message of conversations without one: None is Vicuna's own, "" is no message.
    """

    system_prompt: str | None = None


class Vicuna(Llama):
    """LLaMA with the texts of Vicuna 1.1 and later (FastChat's `vicuna_v1.1`), whatever the tokenizer's template is."""

    Config = VicunaConfig

    @classmethod
    def conversation_layout(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        return cls.chat_template(config, tokenizer)

    @classmethod
    def chat_template(cls, config: Any, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        system_prompt: str | None = config.system_prompt
        return ChatTemplate(
            user=("USER:", ""),
            assistant=("ASSISTANT:", str(tokenizer.eos_token)),
            default_system=VICUNA_SYSTEM_PROMPT if system_prompt is None else system_prompt,
        )

    def _log_problems(self) -> Self:
        """Log that the chat template of the tokenizer has no effect; return the part."""
        if self.tokenizer.chat_template:
            log.warning(
                "'%s' has a chat template, which 'vicuna' does not use; to use it, set name: llama",
                self.tokenizer.name_or_path,
            )
        return self


def tiny_gated_config(**others: Any) -> dict[str, Any]:
    """Return the config of a tiny model with gated MLPs, as in LLaMA and most other families."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return {**sizes, **others}
