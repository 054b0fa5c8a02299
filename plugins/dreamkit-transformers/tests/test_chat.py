"""Chat templates: the texts around the turns of a conversation."""

from dataclasses import replace

import pytest

from dreamkit import ChatTemplate
from dreamkit_transformers.causal_lm import CausalLM
from dreamkit_transformers.llama import VICUNA_SYSTEM_PROMPT, Vicuna, VicunaConfig
from dreamkit_transformers.tokenizers import byte_tokenizer
from small_language import SMALL, make

PLAIN = ChatTemplate(user=("USER: ", "\n"), assistant=("ASSISTANT: ", "</s>"), system=("", "\n"))


def test_llama_and_vicuna_use_their_published_templates():
    assert make().chat == ChatTemplate(
        user=("[INST]", "[/INST]"), assistant=("", "</s>"), system=("<<SYS>>\n", "\n<</SYS>>\n\n")
    )
    vicuna = ChatTemplate(
        user=("USER:", ""), assistant=("ASSISTANT:", "</s>"), default_system=VICUNA_SYSTEM_PROMPT
    )
    assert make(Vicuna).chat == vicuna
    silent = Vicuna.from_config(VicunaConfig(config=SMALL, system_prompt=""))
    assert silent.chat == replace(vicuna, default_system="")


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEFAULT = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<|system|>\nBe brief.<|end|>\n{% endif %}" + CHATML
)
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
SPACED = WITHOUT_SYSTEM.replace("{{ m.content }}{{ eos_token }}", "{{ ' ' + m.content }}{{ eos_token }}")
NAMED = ("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "<|end|>\n"), ("<|system|>\n", "<|end|>\n")
NUMBERED = "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ChatTemplate(*NAMED)),
        (DEFAULT, ChatTemplate(*NAMED, default_system="Be brief.")),
        (WITHOUT_SYSTEM, ChatTemplate(("[INST] ", " [/INST]"), ("", "</s>"), ("", "\n"))),
        (SPACED, ChatTemplate(("[INST] ", " [/INST]"), (" ", "</s>"), ("", "\n"))),
        (NUMBERED, PLAIN),
        ("{{ raise_exception('never') }}", PLAIN),
        ("{{ messages[0].content | upper }}", PLAIN),
        (None, PLAIN),
    ],
    ids=[
        "chatml",
        "default system",
        "no system",
        "spaced",
        "numbered turns",
        "raising",
        "changing text",
        "none",
    ],
)
def test_causal_lm_reads_the_chat_template_of_its_tokenizer(template, expected, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    config = replace(CausalLM.tiny_config(), tokenizer=str(tmp_path))
    assert CausalLM.from_config(config).chat == expected
