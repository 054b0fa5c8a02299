"""Fixed texts around the turns of a conversation."""

from dataclasses import replace

import pytest

from chat_tokenizers import CHATML, ENDLESS
from dreamkit import ChatTemplate
from dreamkit_transformers.causal_lm import CausalLM
from dreamkit_transformers.llama import VICUNA_SYSTEM_PROMPT, Llama, Vicuna, VicunaConfig
from dreamkit_transformers.tokenizers import byte_tokenizer
from small_language import SMALL, make, write

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


def test_without_a_template_causal_lm_uses_a_plain_one():
    assert CausalLM.from_config(CausalLM.tiny_config()).chat == PLAIN


def test_vicuna_logs_that_it_does_not_use_the_template_of_the_tokenizer(tmp_path, caplog):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    part = Vicuna.from_config(VicunaConfig(config=SMALL, tokenizer=str(tmp_path)))
    assert part.chat == make(Vicuna).chat
    assert "has a chat template, which 'vicuna' does not use; to use it, set name: llama" in caplog.text


@pytest.mark.parametrize(
    ("family", "template"), [(Vicuna, CHATML), (Llama, ENDLESS["opens alone"])], ids=["vicuna", "llama"]
)
def test_a_warning_about_the_template_is_logged_once(family, template, tmp_path, caplog):
    write(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    config = family.Config(pretrained=str(tmp_path))
    family.infer_spec(config)
    family.meta_modules(config)
    assert not caplog.records
    family.from_pretrained(config)
    (record,) = caplog.records
    assert "chat template" in record.getMessage()
