"""The page of checks; `python tests/helpers/checks_page.py` writes docs/plugins/checks.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dreamkit.testing import checks as _all  # noqa: F401  importing them registers them
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.subject_kinds import KINDS, PARTS

PATH = Path(__file__).parents[2] / "docs" / "plugins" / "checks.md"
NAMES = {"dataset": "data set"}  # in titles
HEAD = """# The checks

Look up here what a check tests, and why. [Plug-ins](README.md) explains how to run the checks.

(*) marks a check that is skipped if the part declares that it does not apply, or if the example of a data set has no
files.

`python tests/helpers/checks_page.py` writes this page from the checks' docstrings.
"""


def page() -> str:
    """Return the page: the checks of everything, then those of fewer kinds, then those of one."""
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in CHECKS:
        groups.setdefault(check.kinds, []).append(check)
    sections = [HEAD]
    for kinds in sorted(groups, key=lambda kinds: (-len(kinds), KINDS.index(kinds[0]))):
        sections.append(f"## {_title(kinds)}\n\n{_table(groups[kinds])}\n")
    return "\n".join(sections)


def _title(kinds: tuple[str, ...]) -> str:
    if kinds == KINDS:
        return "Every part and data set"
    if kinds == PARTS:
        return "Every part"
    names = [f"{NAMES.get(kind, kind).replace('_', ' ')}s" for kind in kinds]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names).capitalize()


def _table(checks: Iterable[Check]) -> str:
    rows = [
        f"| `{check.name}`{'' if check.unless is None else ' (*)'} | {check.holds} | {check.rationale} |"
        for check in checks
    ]
    return "\n".join(["| check | property | why |", "|---|---|---|", *rows])


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
