"""What stands around the turns of a conversation."""

from dataclasses import replace

from dreamkit import ChatTemplate
from dreamkit_transformers.llama import VICUNA_SYSTEM_PROMPT, Vicuna, VicunaConfig
from small_language import SMALL, make


def test_chat_templates():
    assert make().chat == ChatTemplate(
        user=("[INST]", "[/INST]"), assistant=("", "</s>"), system=("<<SYS>>\n", "\n<</SYS>>\n\n")
    )
    vicuna = ChatTemplate(
        user=("USER:", ""), assistant=("ASSISTANT:", "</s>"), default_system=VICUNA_SYSTEM_PROMPT
    )
    assert make(Vicuna).chat == vicuna
    silent = Vicuna.from_config(VicunaConfig(config=SMALL, system_prompt=""))
    assert silent.chat == replace(vicuna, default_system="")
