"""Fixed texts around the turns of a conversation, for tokenizers without a chat template."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from dreamkit import ChatTemplate

log = logging.getLogger(__name__)


def plain_turns(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return a plain template: `USER: ...` and `ASSISTANT: ...`."""
    log.info("'%s' has no chat template; using a plain one", tokenizer.name_or_path)
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
