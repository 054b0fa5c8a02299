r"""Interpolations in a text, as OmegaConf's grammar has them: `${key}`, `${oc.env:NAME}`; `\${` is the text `${`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse

from dreamkit.errors import DreamkitError, excerpt

VARIABLE: Final = "oc.env"  # OmegaConf's resolver of environment variables
MAX_LENGTH: Final = 10_000  # of a text with interpolations; a longer one takes a second to parse
MAX_INTERPOLATIONS: Final = 10  # of a text; if they are inside each other, the time grows with their square

SYNTAX: Final = (
    r"expected ${key} or ${oc.env:NAME}, each with its closing brace and quotes; write \${ for the text ${"
)

_VARIABLE: Final = re.compile(r"\$\{\s*oc\s*\.\s*env\s*:")
_WITHOUT_DEFAULT: Final = re.compile(rf"{_VARIABLE.pattern}([^,{{}}]*)\}}")


@dataclass(frozen=True)
class Interpolation:
    """An interpolation: the part `start:stop` of a text.

    `inner` is the text between its braces. `resolver` is the name before a colon, "" for the value of a key.
    `is_variable`: it names an environment variable, maybe with a default, and refers to no key.
    """

    start: int
    stop: int
    inner: str
    resolver: str
    is_variable: bool


def interpolations(text: str) -> list[Interpolation]:
    """Return the outermost interpolations of `text`.

    Raises:
        DreamkitError: a syntax error, or a text that is too long or has too many interpolations.
    """
    if len(text) > MAX_LENGTH:
        raise DreamkitError(f"expected at most {MAX_LENGTH} characters beside '${{', got {len(text)}")
    count = text.count("${")
    if count > MAX_INTERPOLATIONS:
        raise DreamkitError(
            f"expected '${{' at most {MAX_INTERPOLATIONS} times in a value, got {count} times"
        )
    try:
        tree = parse(text)
    except (OmegaConfBaseException, RecursionError) as error:
        raise DreamkitError(SYNTAX) from error
    return [_interpolation(text, context) for context in _outermost(tree)]


def _outermost(node: Any) -> Iterator[Any]:
    """Yield the grammar's contexts of interpolations in `node` that are in no other one."""
    for child in node.getChildren() if hasattr(node, "getChildren") else ():
        if type(child).__name__ == "InterpolationContext":
            yield child
        else:
            yield from _outermost(child)


def _interpolation(text: str, context: Any) -> Interpolation:
    start, stop = context.start.start, context.stop.stop + 1
    (form,) = context.getChildren()  # of a key or of a resolver
    names = [child.getText() for child in form.getChildren() if type(child).__name__ == "ResolverNameContext"]
    resolver = names[0] if names else ""
    inner = [_interpolation(text, each) for each in _outermost(form)]
    is_variable = resolver == VARIABLE and all(each.is_variable for each in inner)
    return Interpolation(start, stop, text[start + 2 : stop - 1], resolver, is_variable)


def escape(text: str) -> str:
    r"""Return `text` with `\${` for each `${`, so that OmegaConf reads it as it is."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def has_variable(text: str) -> bool:
    """Return True if `text` names an environment variable."""
    return _VARIABLE.search(text) is not None


def expand_variables(text: str) -> str:
    """Return `text` with the values of its environment variables.

    Raises:
        DreamkitError: a variable without a default is not set, a default is null, or `text` has other interpolations.
    """
    if not all(each.is_variable for each in interpolations(text)):
        raise DreamkitError(
            f"expected only environment variables in '{excerpt(text)}', got '${{' for another"
        )
    try:
        value = OmegaConf.create([text])[0]
    except OmegaConfBaseException as error:
        names = [name.strip().strip("'\"") for name in _WITHOUT_DEFAULT.findall(text)]
        unset = [name for name in names if name and name not in os.environ]
        reason = (
            f"the environment variable {unset[0]} is not set"
            if unset
            else "expected a name and at most a default"
        )
        raise DreamkitError(
            f'{reason}; write ${{{VARIABLE}:NAME}} or ${{{VARIABLE}:NAME,"default"}}'
        ) from error
    if value is None:
        raise DreamkitError("expected a text as default, got null")
    return str(value)
