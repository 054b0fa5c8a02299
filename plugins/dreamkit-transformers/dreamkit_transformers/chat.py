"""Read the chat template of a tokenizer from conversations that it renders."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate

log = logging.getLogger(__name__)

# messages of a test conversation, in characters that no template contains
SYSTEM, QUESTION, ANSWER, FOLLOW_UP = (
    "\u2039system\u203a",
    "\u2039question\u203a",
    "\u2039answer\u203a",
    "\u2039follow-up\u203a",
)


def template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return the texts that the tokenizer's own template puts around turns, or a plain template.

    The plain template replaces one that changes messages, or whose texts around turns differ from turn to turn.
    """
    template = _read(tokenizer) if tokenizer.chat_template else None
    if template is not None:
        return template
    log.info(
        "'%s' has no chat template of fixed texts around turns; using a plain one", tokenizer.name_or_path
    )
    return ChatTemplate(
        user=("USER: ", "\n"), assistant=("ASSISTANT: ", tokenizer.eos_token or "\n"), system=("", "\n")
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Return `name`, the token that ends a turn, or the eos token if the vocabulary lacks `name`."""
    return name if name in tokenizer.get_vocab() else str(tokenizer.eos_token)


def named_turns(before: str, after: str) -> ChatTemplate:
    """Return a template whose turns start with `before`, where `{role}` is the role's name, and end with `after`."""
    user, assistant, system = ((before.format(role=role), after) for role in ("user", "assistant", "system"))
    return ChatTemplate(user=user, assistant=assistant, system=system)


def _read(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """Return the template if it renders a test conversation with fixed texts around turns, else None."""
    turns = [("user", QUESTION), ("assistant", ANSWER), ("user", FOLLOW_UP)]
    try:
        whole = _render(tokenizer, turns)
        answered = _render(tokenizer, turns[:2])
        prompted = _render(tokenizer, turns[:1], add_generation_prompt=True)
        question_only = _render(tokenizer, turns[:1])
    except Exception:  # templates are programs that raise any exception
        return None
    if not all(message in whole for message in (QUESTION, ANSWER, FOLLOW_UP)) or not prompted.startswith(
        question_only
    ):
        return None
    user_after = question_only.rpartition(QUESTION)[2]
    before_answer = whole.partition(QUESTION)[2].partition(ANSWER)[0]
    if not before_answer.startswith(user_after):
        return None
    assistant_before = before_answer.removeprefix(user_after)
    before_follow_up = whole.partition(ANSWER)[2].partition(FOLLOW_UP)[0]
    assistant_after = answered.partition(ANSWER)[2]
    start, user_before = whole.partition(QUESTION)[0], before_follow_up.removeprefix(assistant_after)
    if not start.endswith(user_before):
        return None
    default = start.removesuffix(user_before)
    system = _system(tokenizer, turns, user_before)
    if system is not None and default.startswith(system[0]) and default.endswith(system[1]):
        default = default[len(system[0]) : len(default) - len(system[1])] if default else ""
    elif default:
        return None
    template = ChatTemplate(
        user=(user_before, user_after),
        assistant=(assistant_before, assistant_after),
        system=system or ("", "\n"),
        default_system=default,
    )
    return template if _apply(template, turns) == whole else None


def _system(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], user_before: str
) -> tuple[str, str] | None:
    """Return the texts around a system message before the first turn, or None if the template has none there."""
    try:
        rendered = _render(tokenizer, [("system", SYSTEM), *turns])
    except Exception:
        return None
    before, message, rest = rendered.partition(SYSTEM)
    after = rest.partition(QUESTION)[0]
    if not message or not after.endswith(user_before):
        return None
    return before, after.removesuffix(user_before)


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], **options: Any) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    return text.removeprefix(tokenizer.bos_token or "")


def _apply(chat: ChatTemplate, turns: list[tuple[str, str]]) -> str:
    text = chat.default_system.join(chat.system) if chat.default_system else ""
    return text + "".join(
        content.join(chat.user if role == "user" else chat.assistant) for role, content in turns
    )
