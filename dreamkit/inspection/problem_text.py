"""The problems of a recipe and its data as a text for people: a few of each kind, and the number of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from dreamkit.data.skipped import kind_of_problem, split_place
from dreamkit.errors import MOST_SHOWN, RecipeProblem, count

HELD_OUT: Final = "--held-out"  # the key of problems of held-out data
MOST_ALIKE: Final = 3  # problems of one kind and key in a text


def problem_text(
    problems: Sequence[RecipeProblem], unlisted: Mapping[str, int] | None = None, *, all_in: str = ""
) -> str:
    """Return the number of all problems, and lines with a few of each kind.

    `unlisted` has the numbers of further problems by their keys. `all_in` names the output that lists all.
    """
    further = unlisted or {}
    of_recipe = sum(not _is_of_data(problem.key) for problem in problems)
    of_data = len(problems) - of_recipe + sum(further.values())
    if not of_recipe:
        head = f"the data of the recipe has {count(f'{of_data:,}', 'problem')}"
    elif not of_data:
        head = f"the recipe has {count(f'{of_recipe:,}', 'problem')}"
    else:
        head = f"the recipe has {count(f'{of_recipe:,}', 'problem')}, and its data {of_data:,}"
    lines = list(_lines(problems, f"; {all_in} lists all" if all_in else ""))
    more = [f"  and {count(f'{len(lines) - MOST_SHOWN:,}', 'line')} more"] if len(lines) > MOST_SHOWN else []
    counted = (
        f"  {key}: {count(f'{number:,}', 'further problem')} that no list has"
        for key, number in further.items()
    )
    return "\n".join([f"{head}:", *lines[:MOST_SHOWN], *more, *counted])


def _lines(problems: Iterable[RecipeProblem], hint: str) -> Iterator[str]:
    kinds: dict[tuple[str, str], list[RecipeProblem]] = {}
    for problem in problems:
        _, _, reason = split_place(problem.message)
        kinds.setdefault((problem.key, kind_of_problem(reason)), []).append(problem)
    for (key, _), alike in kinds.items():
        shown = alike if len(alike) == MOST_ALIKE + 1 else alike[:MOST_ALIKE]
        yield from (f"  {problem}" for problem in shown)
        if len(alike) > len(shown):
            yield f"  {key}: and {len(alike) - len(shown):,} more such problems{hint}"


def _is_of_data(key: str) -> bool:
    return key == HELD_OUT or key.partition(".")[0] == "data"
