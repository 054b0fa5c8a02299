"""Templates that refuse conversations or have no end of an answer, and what is logged about them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from chat_tokenizers import TEMPLATES, TOKENIZERS
from chats import conversation, library_ids, part_of, sequencer_of
from dreamkit import Document, DocumentError, Text
from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.library_chat import LibraryChat
from dreamkit_transformers.llama import tiny_gated_config
from dreamkit_transformers.tokenizers import byte_tokenizer


def test_a_refused_conversation_names_what_the_template_raises() -> None:
    sequencer = sequencer_of(part_of("byte-level", "alternating roles"))
    document = conversation(("system", "0"), ("user", "1"), ("assistant", "8"))
    message = (
        r"d1: the tokenizer '.*' has a chat template that refuses a conversation of system, user, assistant "
    )
    message += r"\(TemplateError: roles must alternate\); change the turns, or name a tokenizer with another template"
    with pytest.raises(DocumentError, match=message):
        sequencer.sequence(document)


def test_the_message_about_a_long_conversation_is_short() -> None:
    part = part_of("byte-level", "alternating roles")
    document = conversation(*[("user", "1"), ("assistant", "8")] * 500, ("system", "0"))
    with pytest.raises(DocumentError, match=r"a conversation of user, assistant, .*\.\.\.") as raised:
        sequencer_of(part).sequence(document)
    assert len(str(raised.value)) < 400


def test_a_tokenizer_with_other_ids_is_refused_with_the_difference(monkeypatch: Any) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.chat_template = TEMPLATES["chatml"]
    original = type(tokenizer).apply_chat_template

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        return result if isinstance(result, str) else [*result[:3], 5, *result[3:]]

    assert LibraryChat(tokenizer).problem is None
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", apply)
    problem = LibraryChat(tokenizer).problem
    assert problem is not None
    assert "got others from token 3 on" in problem and "a conversation of user ('What is this?')" in problem


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('never') }}",
            r"refuses a conversation of user, assistant \(TemplateError: never\)",
        ),
        ("{{ messages[0].content }}", "leaves out an answer, turn 1 of a conversation of user, assistant"),
    ],
)
def test_a_template_for_no_conversation_is_logged_and_refused(
    template: str, message: str, tmp_path: Any, caplog: Any
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    part = CausalLM.from_config(replace(CausalLM.tiny_config(), tokenizer=str(tmp_path)))
    assert "conversations are refused" in caplog.text
    problem = CausalLM.infer_spec(part.config).conversation_problem
    assert problem is not None and re.search(f"{message}.*; name a tokenizer with another template$", problem)
    sequencer = sequencer_of(part)
    assert sequencer.sequence(Document((Text("other documents"),))).ids
    with pytest.raises(DocumentError, match=message):
        sequencer.sequence(conversation(("user", "1"), ("assistant", "8")))


def test_a_template_that_requires_a_system_turn_has_conversations(tmp_path: Any) -> None:
    tokenizer = TOKENIZERS["byte-level"]()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn first') }}"
    )
    tokenizer.chat_template += "{% endif %}" + TEMPLATES["chatml"]
    tokenizer.save_pretrained(tmp_path)
    part = CausalLM.from_config(
        LanguageConfig(config={"model_type": "llama", **tiny_gated_config()}, tokenizer=str(tmp_path))
    )
    document = conversation(("system", "0"), ("user", "1"), ("assistant", "8"))
    assert part.spec.conversation_problem is None
    assert sequencer_of(part).sequence(document).ids == library_ids(part, document, prompt=False)
    assert part.tokenizer.convert_tokens_to_ids("<|im_end|>") in part.spec.eos_ids
    with pytest.raises(DocumentError, match="a system turn first"):
        sequencer_of(part).sequence(conversation(("user", "1"), ("assistant", "8")))


def test_a_template_without_an_end_token_is_logged(tmp_path: Any, caplog: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    CausalLM.from_config(replace(CausalLM.tiny_config(), tokenizer=str(tmp_path)))
    assert r"puts '\n' after an answer, without an end token" in caplog.text
