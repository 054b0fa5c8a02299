"""The page of checks: python -m dreamkit.testing.listing > docs/plugins/checks.md"""

from __future__ import annotations

from collections.abc import Iterable

from dreamkit.testing import contracts
from dreamkit.testing.check import CHECKS, Check
from dreamkit.testing.subject_kinds import KINDS

HEAD = """# The checks

What `dreamkit.testing` tests of each kind of part, and what each check spares a user. [Plug-ins](README.md) says how
to run them. A check marked (*) is passed over where the part says of itself that it does not apply.

This page is made of the checks' own words: `python -m dreamkit.testing.listing > docs/plugins/checks.md`.
"""


def page() -> str:
    """The checks of every part, then those of one kind or two."""
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in CHECKS:
        groups.setdefault(check.kinds, []).append(check)
    parts = [HEAD]
    for kinds in sorted(groups, key=lambda kinds: (-len(kinds), KINDS.index(kinds[0]))):
        parts.append(f"## {_title(kinds)}\n\n{_table(groups[kinds])}\n")
    return "\n".join(parts)


def _title(kinds: tuple[str, ...]) -> str:
    if kinds == KINDS:
        return "Every part"
    names = [f"{kind.replace('_', ' ')}s" for kind in kinds]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names).capitalize()


def _table(checks: Iterable[Check]) -> str:
    rows = [
        f"| `{check.name}`{'' if check.unless is None else ' (*)'} | {check.holds} | {check.rationale} |"
        for check in checks
    ]
    return "\n".join(["| check | what must hold | what it spares a user |", "|---|---|---|", *rows])


if __name__ == "__main__":
    assert contracts.checks(KINDS[0]), "importing the contracts makes the checks"
    print(page(), end="")
