"""Comparison of the processes of a run: their machines may have other packages, settings or data."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from dreamkit.checkpoints.components import component_records
from dreamkit.distributed import gathered, world_size
from dreamkit.errors import TrainingError, excerpt, first_lines, printable
from dreamkit.recipe.flat import flat
from dreamkit.recipe.sections import Recipe
from dreamkit.recipe.written import shown_setting
from dreamkit.registry.registry import Registry
from dreamkit.runs.record import LIBRARIES, installed_version
from dreamkit.training.same_run import data_paths

# Packages that decide what a step computes, or how processes divide it.
PACKAGES: Final = (*LIBRARIES, "accelerate", "safetensors")
MOST_LINES: Final = 20  # of a message


def require_same_start(recipe: Recipe, registry: Registry, *, resume: bool, changed_data: bool) -> None:
    """Check that all processes of the run have the same packages and settings; paths of data may differ.

    Every process must call this function.

    Raises:
        TrainingError: they differ. All processes raise it.
    """
    if world_size() == 1:
        return
    records = component_records(recipe, registry).values()
    names = {*PACKAGES, *(record["distribution"] for record in records)}
    _require_same(
        {name: installed_version(name) or "not installed" for name in names},
        "expected the same packages in all processes of a run; install the same versions on each machine",
    )
    paths = data_paths(recipe)
    settings = {key: value for key, value in flat(recipe.to_dict()) if key not in paths}
    _require_same(
        {**settings, "resume": resume, "changed data": changed_data},
        "expected the same settings in all processes of a run; start each with the same command and recipe",
        shown_setting,
    )


def require_same_data(fingerprints: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Check that the data sets have the same fingerprints in all processes. Every process must call this function.

    `fingerprints` are those of each data set, by the key of its section in the recipe. Other held-out data would be as
    wrong as other training data: processes with other numbers of documents would wait for each other without end.

    Raises:
        TrainingError: they differ. All processes raise it.
    """
    _require_same(
        {
            f"{key}.{number}: {printable(name)}": value
            for key, listed in fingerprints.items()
            for number, each in enumerate(listed)
            for name, value in each.items()
        },
        "expected the same data on all machines of a run; copy it again",
    )


def _excerpt(value: object) -> str:
    return excerpt(str(value))


def _require_same(
    facts: Mapping[str, object], expectation: str, shown: Callable[[object], str] = _excerpt
) -> None:
    """Compare facts, by their names, with those of the first process; the message has the values as `shown`.

    Raises:
        TrainingError: they differ in a process. All processes raise it.
    """
    (here, first), *others = gathered((socket.gethostname(), dict(facts)))
    ranks: dict[tuple[str, str], int] = {}
    for number, (host, theirs) in enumerate(others, start=1):
        for name in sorted(first.keys() | theirs.keys()):
            if name not in first or name not in theirs or first[name] != theirs[name]:
                before, then = (shown(each[name]) if name in each else "none" for each in (first, theirs))
                difference = f"  {name}: {before} on {here}, {then} on {host}"
                ranks.setdefault((name, difference), number)  # the processes of a machine are alike
    if ranks:
        lines = [f"{difference} (rank {number})" for (_, difference), number in ranks.items()]
        raise TrainingError(f"{expectation}:\n" + "\n".join(first_lines(lines, MOST_LINES)))
