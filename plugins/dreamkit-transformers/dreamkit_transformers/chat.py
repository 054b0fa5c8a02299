"""The chat template of a tokenizer, read off conversations that it renders."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate

log = logging.getLogger(__name__)

SYSTEM, ASKED, SAID, AGAIN = (
    "\u2039system\u203a",
    "\u2039asked\u203a",
    "\u2039said\u203a",
    "\u2039again\u203a",
)


def template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """What the tokenizer's own template puts around turns; a plain one where it has none that does just that.

    A template that changes what is said, or what stands around it from turn to turn, is none of these.
    """
    found = _read(tokenizer) if tokenizer.chat_template else None
    if found is not None:
        return found
    log.info(
        "'%s' has no chat template of fixed texts around turns; a plain one is used", tokenizer.name_or_path
    )
    return ChatTemplate(
        user=("USER: ", "\n"), assistant=("ASSISTANT: ", tokenizer.eos_token or "\n"), system=("", "\n")
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The token that ends a turn, or the one that ends a text, where the vocabulary lacks it."""
    return name if name in tokenizer.get_vocab() else str(tokenizer.eos_token)


def _read(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    turns = [("user", ASKED), ("assistant", SAID), ("user", AGAIN)]
    try:
        whole = _rendered(tokenizer, turns)
        ended = _rendered(tokenizer, turns[:2])
        opened = _rendered(tokenizer, turns[:1], add_generation_prompt=True)
        closed = _rendered(tokenizer, turns[:1])
    except Exception:  # the templates are programs of their own, which refuse what they do not like
        return None
    if not all(word in whole for word in (ASKED, SAID, AGAIN)) or not opened.startswith(closed):
        return None
    user_after = closed.rpartition(ASKED)[2]
    answered = whole.partition(ASKED)[2].partition(SAID)[0]
    if not answered.startswith(user_after):
        return None
    assistant_before = answered.removeprefix(user_after)
    between = whole.partition(SAID)[2].partition(AGAIN)[0]
    assistant_after = ended.partition(SAID)[2]
    first, user_before = whole.partition(ASKED)[0], between.removeprefix(assistant_after)
    if not first.endswith(user_before):
        return None
    default = first.removesuffix(user_before)
    system = _system(tokenizer, turns, user_before)
    if system is not None and default.startswith(system[0]) and default.endswith(system[1]):
        default = default[len(system[0]) : len(default) - len(system[1])] if default else ""
    elif default:
        return None
    found = ChatTemplate(
        user=(user_before, user_after),
        assistant=(assistant_before, assistant_after),
        system=system or ("", "\n"),
        default_system=default,
    )
    return found if _applied(found, turns) == whole else None


def _system(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], user_before: str
) -> tuple[str, str] | None:
    """What stands around a system message, where the template takes one before the first turn."""
    try:
        rendered = _rendered(tokenizer, [("system", SYSTEM), *turns])
    except Exception:
        return None
    before, found, rest = rendered.partition(SYSTEM)
    after = rest.partition(ASKED)[0]
    if not found or not after.endswith(user_before):
        return None
    return before, after.removesuffix(user_before)


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], **options: Any) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    return text.removeprefix(tokenizer.bos_token or "")


def _applied(chat: ChatTemplate, turns: list[tuple[str, str]]) -> str:
    text = chat.default_system.join(chat.system) if chat.default_system else ""
    return text + "".join(
        content.join(chat.user if role == "user" else chat.assistant) for role, content in turns
    )
