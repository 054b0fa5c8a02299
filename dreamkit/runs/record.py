"""The record of a run, `run.json`: what it trains, with what, and when it was started. This module loads no torch."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypedDict, get_type_hints

from dreamkit.errors import TrainingError, describe_error, excerpt, printable
from dreamkit.runs.run_paths import RECORD
from dreamkit.storage.folder_manifest import schema_errors
from dreamkit.storage.json_files import MAX_BYTES, json_object
from dreamkit.storage.paths import irregular_kind, shown_path
from dreamkit.storage.writing import write_text

FORMAT: Final = 1
LIBRARIES: Final = ("dreamkit-core", "torch", "transformers", "diffusers", "peft")


class Start(TypedDict):
    """A start or resume of a run: its time (ISO 8601, UTC), and the number of steps that were finished."""

    time: str
    step: int


@dataclass(frozen=True)
class RunRecord:
    """The content of `run.json`, which the first process writes at each start and resume.

    All but `starts` is that of the last start.

    Attributes:
        format: version of the form of this file.
        seed: seed of the run.
        steps: number of steps of the whole run.
        global_batch: number of documents of a step, over all processes.
        processes: number of processes.
        machines: number of machines.
        device: name of the device of the first process.
        versions: versions of Python, libraries and the distributions of the recipe's components, by name.
        starts: each start and resume, in order.
        ended: why the run ended early; empty while it goes on, if it is finished, or if it was killed.
        recipe: the recipe with every default. Paths with environment variables are as written, without their values.
    """

    format: int
    seed: int
    steps: int
    global_batch: int
    processes: int
    machines: int
    device: str
    versions: dict[str, str]
    starts: list[Start]
    ended: str
    recipe: dict[str, Any]

    def write(self, out: Path) -> None:
        """Write the record into the folder of a run.

        Raises:
            OutputError: the file cannot be written.
        """
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        # paths may have bytes that are not UTF-8; as lone surrogates, these have escapes in JSON
        write_text(out / RECORD, text.encode(errors="backslashreplace").decode() + "\n")

    def after(self, earlier: RunRecord | None) -> RunRecord:
        """Return this record with the starts of an earlier one of its run before its own."""
        return self if earlier is None else replace(self, starts=[*earlier.starts, *self.starts])


def read_record(out: Path) -> RunRecord | None:
    """Return the record of the run in a folder; None if there is none, as earlier releases wrote none.

    Raises:
        TrainingError: it is damaged, or of a newer release.
    """
    file = out / RECORD
    try:
        if (kind := irregular_kind(file)) is not None:
            raise ValueError(f"expected a file, got {kind}")
        if (size := file.stat().st_size) > MAX_BYTES:
            raise ValueError(f"expected at most {MAX_BYTES:,} bytes, got {size:,}")
        return _record(json_object(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else describe_error(error)
        raise TrainingError(
            f"{shown_path(file)}: {reason}; restore or remove this file; the next start of the run writes it anew"
        ) from error


def _record(data: Mapping[str, Any]) -> RunRecord:
    """Return the record with these values.

    Raises:
        ValueError: a value is missing, unknown or impossible.
    """
    number = data.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError(
            f"expected format {FORMAT}, got {excerpt(str(number))}, which a newer dreamkit wrote"
        )
    types = get_type_hints(RunRecord)
    problems = [*schema_errors(data, {field.name: types[field.name] for field in fields(RunRecord)})]
    if problems:
        raise ValueError("; ".join(map(printable, problems[:3])))
    record = RunRecord(**data)
    for name in ("format", "steps", "global_batch", "processes", "machines"):
        if getattr(record, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(record, name)}")
    if not record.starts:
        raise ValueError("starts: expected at least one start, got none")
    for number, start in enumerate(record.starts):
        if start["step"] < 0:
            raise ValueError(f"starts.{number}.step: expected at least 0, got {start['step']}")
        try:
            started(start)
        except ValueError:
            raise ValueError(
                f"starts.{number}.time: expected a time with its zone, got '{excerpt(start['time'])}'"
            ) from None
    return record


def new_start(step: int) -> Start:
    """Return a start at this moment, after `step` finished steps."""
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step}


def started(start: Start) -> datetime:
    """Return the time of a start.

    Raises:
        ValueError: it is not a time with a zone.
    """
    time = datetime.fromisoformat(start["time"])
    if time.tzinfo is None:
        raise ValueError("no zone")
    return time


def installed_versions(components: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the versions of Python and libraries, and of the distributions of `components` (name, version)."""
    libraries = {name: installed_version(name) for name in LIBRARIES}
    found = {name: found for name, found in libraries.items() if found is not None}
    return {"python": platform.python_version()} | found | dict(sorted(components))


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed, as diffusers, which some parts need."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
