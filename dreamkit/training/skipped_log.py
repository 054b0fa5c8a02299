"""The documents that a run skipped or cut: their numbers, the list `skipped.jsonl`, and the limit of their share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import torch

from dreamkit.data.skipped import Skipped, SkippedSummary, is_beyond
from dreamkit.distributed import is_main, total
from dreamkit.errors import TrainingError, count, excerpt
from dreamkit.runs.log_entries import read_entries
from dreamkit.storage.writing import append_text, write_text
from dreamkit.training.resume_state import DocumentCounts

_TYPES: Final = {"step": int, **get_type_hints(Skipped)}  # of the values in a line


@dataclass(frozen=True)
class Counts:
    """Numbers of documents since the start of the run.

    Attributes:
        skipped: documents that others replaced, in all processes.
        bad: those of them that are not only too long.
        cut: documents of this process whose end was left out; the main one has those before a resume of all, too.
    """

    skipped: int = 0
    bad: int = 0
    cut: int = 0

    def plus(self, documents: Sequence[Skipped], cut: int) -> Counts:
        """Return the numbers with more documents that were skipped or cut."""
        bad = sum(not document.is_long for document in documents)
        return Counts(self.skipped + len(documents), self.bad + bad, self.cut + cut)


class SkippedLog:
    """The skipped documents of a run, counted in every process; the main one appends a line for each to a file.

    The numbers are those of finished steps. A resumed run drops the lines of steps that it repeats.

    Args:
        path: the file, which appears with the first line.
        max_skipped: greatest share of bad documents, after the first thousand.
        step_documents: number of documents that a step trains on, in all processes.
    """

    def __init__(self, path: Path, max_skipped: float, step_documents: int) -> None:
        self.path = path
        self.max_skipped = max_skipped
        self.step_documents = step_documents
        self.counts = Counts()
        # where the limit of bad documents begins to count: a step, and the numbers before it
        self.limit_step = self.limit_skipped = self.limit_bad = 0
        # since that start; in the main process also of the steps before a resume
        self.summary = SkippedSummary()
        self._next = Counts()  # with the documents of an unfinished step

    def begin(self, step: int, documents: DocumentCounts, *, limit_begins_here: bool) -> None:
        """Continue after `step` with numbers of all processes."""
        self.limit_step, self.limit_skipped, self.limit_bad = (
            (step, documents.skipped, documents.bad)
            if limit_begins_here
            else (documents.limit_step, documents.limit_skipped, documents.limit_bad)
        )
        self.counts = Counts(documents.skipped, documents.bad, documents.cut if is_main() else 0)
        self._next = self.counts
        if is_main() and self.path.is_file():
            entries = [entry for entry in read_entries(self.path, _entry) if entry["step"] <= step]
            write_text(self.path, "".join(map(_line, entries)))
            for entry in entries:
                if entry["step"] > self.limit_step:
                    self.summary.add(Skipped(**{name: entry[name] for name in _TYPES if name != "step"}))

    def add(self, step: int, documents: Sequence[Skipped], cut: int) -> None:
        """Add the documents that all processes skipped, and the number of those that this one cut, for `step`."""
        documents = sorted(documents, key=lambda document: document.place)
        self._next = self.counts.plus(documents, cut)
        for document in documents:
            self.summary.add(document)
        if documents and is_main():
            append_text(self.path, "".join(_line(_record(step, document)) for document in documents))

    def end_step(self) -> None:
        """Count the documents of the step, which is finished."""
        self.counts = self._next

    def rewind(self, counts: Counts) -> None:
        """Take the numbers after an earlier step."""
        self.counts = self._next = counts

    def totals(self, device: torch.device) -> dict[str, int]:
        """Return the numbers of documents that all processes skipped and cut. Every process must call this method."""
        cut = int(total(torch.tensor(self.counts.cut, device=device)))
        return {"skipped": self.counts.skipped, "bad": self.counts.bad, "cut": cut}

    def notes(self, device: torch.device) -> list[str]:
        """Return lines about documents that were skipped and cut. Every process must call this method."""
        totals = self.totals(device)
        ends = {"skipped": f", listed in {self.path}", "cut": ", which were longer than a row"}
        return [
            f"{verb} {count(f'{totals[verb]:,}', 'document')}{end}"
            for verb, end in ends.items()
            if totals[verb]
        ]

    def state(self, device: torch.device) -> DocumentCounts:
        """Return the numbers for a resume point. Every process must call this method."""
        start = {name: getattr(self, name) for name in ("limit_step", "limit_skipped", "limit_bad")}
        return DocumentCounts(**self.totals(device), **start)

    def limit_error(self, step: int) -> TrainingError | None:
        """Return the error of a run with too many bad documents when `step` was read, or None."""
        trained = (step - self.limit_step) * self.step_documents
        bad = self._next.bad - self.limit_bad
        read = trained + self._next.skipped - self.limit_skipped
        if not is_beyond(self.max_skipped, bad, read):
            return None
        since = f" since step {self.limit_step}" if self.limit_step else ""
        common = f"{self.summary.most_common()}; " if self.summary.documents else ""
        return TrainingError(
            f"expected at most {self.max_skipped:.2%} bad documents (train.max_skipped), got {bad / read:.2%}{since}: "
            f"{bad:,} of {read:,}, listed in {self.path}; {common}correct the data and add --changed-data, or raise "
            "train.max_skipped"
        )


def _record(step: int, document: Skipped) -> dict[str, Any]:
    """Return the content of a line."""
    return {"step": step, **asdict(document)}


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _entry(line: bytes) -> dict[str, Any]:
    """Return the content of a line.

    Raises:
        ValueError, RecursionError: the line has another form.
    """
    entry = json.loads(line.decode())
    if not isinstance(entry, dict):
        raise ValueError(f"expected a section, got {excerpt(line.decode())}")
    for name, kind in _TYPES.items():
        if name not in entry or not isinstance(entry[name], kind):
            raise ValueError(f"expected {name} of a skipped document, got {excerpt(line.decode())}")
    return entry
