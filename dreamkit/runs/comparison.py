"""Several runs side by side: how recipes and versions differ, and the last figures. This module loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dreamkit.errors import DreamkitError, printable
from dreamkit.recipe.flat import flat
from dreamkit.recipe.written import shown_setting
from dreamkit.runs.curve_charts import HELD_OUT, ordered
from dreamkit.runs.record import RunRecord, read_record
from dreamkit.runs.run_content import RunContent
from dreamkit.runs.summaries import RunSummary, stored_recipe, summary
from dreamkit.storage.paths import shown_path

NOT_SET: Final = "-"
FIGURES: Final = ("loss", "lm", "denoising", "grad_norm", "steps_per_second")


@dataclass(frozen=True)
class Row:
    """A row of a comparison: a key, and a text for each run."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class ComparedRun:
    """A run of a comparison: its name, recipe, record (None of an earlier release), curves and state."""

    name: str
    recipe: dict[str, Any]
    record: RunRecord | None
    content: RunContent
    summary: RunSummary


def open_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Return the runs in these folders.

    Raises:
        DreamkitError: a folder has no run, or a file of one is damaged.
    """
    names = _names(folders)
    runs = []
    for folder, name in zip(folders, names, strict=True):
        recipe = stored_recipe(folder)
        if recipe is None:
            raise DreamkitError(
                f"expected the folder of a run, got {shown_path(folder)}, which has neither run.json nor a resume "
                "point; `dreamkit runs FOLDER` lists the runs in a folder"
            )
        content = RunContent(folder)
        content.read()
        runs.append(ComparedRun(name, recipe, read_record(folder), content, summary(folder)))
    return runs


def recipe_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return the settings in which the resolved recipes differ; paths are shown as they are written."""
    settings = [dict(flat(run.recipe)) for run in runs]
    return _differing(settings, shown_setting)


def other_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return the versions, documents of a step, processes and devices in which runs with a record differ."""
    facts: list[dict[str, Any]] = []
    for run in runs:
        record = run.record
        facts.append(
            {}
            if record is None
            else {
                "documents of a step": record.global_batch,
                "processes": record.processes,
                "machines": record.machines,
                "device": record.device,
                **record.versions,
            }
        )
    return _differing(facts, lambda value: printable(str(value)))


def figure_rows(runs: Sequence[ComparedRun]) -> list[Row]:
    """Return state, steps and last figures of each run."""
    rows = [
        Row("state", tuple(run.summary.state for run in runs)),
        Row("step", tuple(f"{run.summary.step}/{run.summary.steps or '?'}" for run in runs)),
    ]
    for is_held_out in (False, True):
        last = [(run.content.held_out if is_held_out else run.content.log).last for run in runs]
        keys = [key for key in FIGURES if any(key in values for values in last)]
        for key in ordered(keys):
            values = tuple(f"{values[key]:.4g}" if key in values else NOT_SET for values in last)
            rows.append(Row(f"{HELD_OUT} {key}" if is_held_out else key, values))
    return rows


def documents_of_a_step(run: ComparedRun) -> int | None:
    """Return the number of documents of a step; None if nothing names it."""
    if run.record is not None:
        return run.record.global_batch
    train = run.recipe.get("train")
    number = train.get("global_batch") if isinstance(train, dict) else None
    return number if isinstance(number, int) else None


def _differing(values: Sequence[Mapping[str, Any]], shown: Callable[[Any], str]) -> list[Row]:
    """Return a row for each key whose values are not all equal."""
    missing = object()
    keys = dict.fromkeys(key for each in values for key in each)
    rows = []
    for key in keys:
        found = [each.get(key, missing) for each in values]
        if any(value != found[0] for value in found):
            texts = tuple(NOT_SET if value is missing else shown(value) for value in found)
            rows.append(Row(printable(key), texts))
    return rows


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths if two have one name."""
    names = [folder.resolve().name for folder in folders]
    return names if len({*names}) == len(names) else [str(folder) for folder in folders]
