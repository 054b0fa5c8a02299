"""Names of roles in the turns of records: those of OpenAI's messages, of LLaVA and of ShareGPT's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dreamkit.document import Role
from dreamkit.errors import describe_value, near_hint

MESSAGE_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",  # its later name in OpenAI's messages
    "user": "user",
    "assistant": "assistant",
}
ALL_ROLES: Final[Mapping[str, Role]] = {"human": "user", "gpt": "assistant", **MESSAGE_ROLES}
FUNCTION_ROLES: Final = frozenset({"tool", "function", "function_call", "observation"})
FUNCTION_CALLS: Final = ("tool_calls", "function_call")  # keys of a turn of the assistant
_NO_FUNCTIONS: Final = (
    "turns with calls of functions are not supported; remove the conversation, or these turns of it"
)


def role_problem(turn: Mapping[str, Any], key: str, roles: Mapping[str, Role]) -> str | None:
    """Return what is wrong with the role under `key` in a turn, or None. `roles` are those that it may have.

    A turn that calls a function or has the result of a call is refused: no chat template here has a place for it, and
    without it the next turn would be an answer to something that the model did not see.
    """
    name = turn.get(key)
    if not isinstance(name, str) or name not in roles:
        message = f"{key}: expected one of {', '.join(roles)}, got {describe_value(name)}"
        if not isinstance(name, str):
            return message
        return f"{message}; {_NO_FUNCTIONS}" if name in FUNCTION_ROLES else message + near_hint(name, roles)
    if called := next((each for each in FUNCTION_CALLS if turn.get(each)), None):
        return f"{called}: {_NO_FUNCTIONS}"
    return None
