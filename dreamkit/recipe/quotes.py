"""Paths in YAML that need quotes: braces begin a section there, and a star an alias."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import yaml

_LONGEST_LINE: Final = 1000  # characters; the search takes seconds in a line of a hundred thousand
_PATH: Final = re.compile(
    r"""
    (?<![^\s\[,{])                                                     # after a blank, or in a list or section
    (?: \$\{[^{}\s"']*+\} | \{ (?: [^{}\s"':] | \{[^{}\s"':]*+\} )*+ \} | [^\s,\[\]{}"'#] )++
    (?![^\s\],}])
    """,
    re.VERBOSE,
)
_BRACES: Final = re.compile(r"(?<!\$)\{[^{}\s:]*(?:,|\.\.)[^{}\s:]*\}")


def quotes_hint(text: str, line: int, key: str = "") -> str:
    """Return the end of a message about invalid YAML: the line with its paths in quotes, if these make it valid.

    `line` is the number of the line with the error, from 0. A text with a `key` is an argument of the command line,
    whose own quotes the shell removes.
    """
    lines = text.splitlines()
    written = lines[line] if line < len(lines) else ""
    if len(written) > _LONGEST_LINE:
        return ""
    quoted = _PATH.sub(lambda match: f"'{match[0]}'" if _needs_quotes(match[0]) else match[0], written)
    lines[line : line + 1] = [quoted]
    if quoted == written or not _is_valid("\n".join(lines), line):
        return ""
    corrected = f'"{key}={quoted}"' if key else quoted.strip()
    return f"; a path with braces or a leading * needs quotes: {corrected}"


def braces_hint(value: object) -> str:
    """Return the end of a message about a section in the place of a path: its keys in quotes, if it has no values.

    `value` maps keys to plain values.
    """
    if not isinstance(value, Mapping) or not value or any(item is not None for item in value.values()):
        return ""
    return f"; a path with braces needs quotes: '{{{','.join(map(str, value))}}}'"


def _needs_quotes(word: str) -> bool:
    return word.startswith("*") or _BRACES.search(word) is not None


def _is_valid(text: str, line: int) -> bool:
    """Return True if a text is valid YAML up to a line."""
    try:
        yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return mark is not None and mark.line > line
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return False
    return True
