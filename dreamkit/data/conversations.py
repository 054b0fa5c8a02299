"""A data set of conversations with images, in the JSON format of LLaVA (arXiv 2304.08485)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.examples import write_images, write_lines
from dreamkit.data.record_keys import RecordKeys
from dreamkit.data.records import ImagePaths, Records, check_settings, paths_in, text_problem
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document, Role
from dreamkit.errors import describe_value, did_you_mean, printable

ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class ConversationsConfig:
    """The recipe section of `conversations`.

    Attributes:
        path: JSON array or JSON Lines file of `{"image": path, "conversations": [{"from": "human", "value": ...}]}`.
            `image` is a path or a list of paths, one for each `<image>` in the turns, in order. The model reads the
            images of `human` turns, and is trained to draw those of `gpt` turns. `system` may hold a system text.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        index: folder of the index of a file of records; None is the user's cache folder.
    """

    path: Path
    images: Path | None = None
    index: Path | None = None


class Conversations(Dataset):
    """A data set with one document per conversation."""

    Config = ConversationsConfig

    def __init__(self, config: ConversationsConfig) -> None:
        self.images = ImagePaths(config.path, config.images)
        self.keys = RecordKeys(("conversations", "image", "system"))
        self.turn_keys = RecordKeys(("from", "value"), slots=(READ_SLOT,), within="conversations")
        self.records = Records(
            config.path,
            self._problem,
            notes=lambda: [*self.keys.notes(), *self.turn_keys.notes()],
            settings=check_settings(config),
            index=config.index,
        )
        self.notes = self.records.notes

    @classmethod
    def tiny_config(cls, folder: Path) -> ConversationsConfig:
        red, green, _ = write_images(folder)
        turns = [
            ("<image> What is it?", "A red square."),
            ("Draw a green one.", "<image>"),
            ("Hello.", "Hi."),
        ]
        records = [
            {
                "image": image,
                "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}],
            }
            for image, (ask, answer) in zip((red, green, ""), turns, strict=True)
        ]
        return ConversationsConfig(write_lines(folder / "conversations.jsonl", records))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        self.check_index(index)
        where, record = self.records[index]
        paths = iter(paths_in(record, "image"))
        turns = []
        for role, text in _turns(record):
            pictures = [self.images.open(next(paths), where) for _ in range(text.count(READ_SLOT))]
            if role == "assistant":
                text = text.replace(READ_SLOT, DRAW_SLOT)
            turns.append(Document.interleave(text, pictures, name=where, role=role))
        return reduce(add, turns)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "records": self.records.sha256}

    def _problem(self, record: Mapping[str, Any]) -> str | None:
        problem = self.keys.problem(record) or _turns_problem(record, self.turn_keys)
        problem = problem or self.images.list_problem(record, "image", or_path=True)
        if problem is None:
            turns = _turns(record)
            slots, images = sum(text.count(READ_SLOT) for _, text in turns), len(paths_in(record, "image"))
            if slots != images:
                return f"expected one image for each {READ_SLOT} in the turns, got {images} for {slots}"
            for _, text in turns:
                self.turn_keys.count_placeholders(text)
        return problem


def _turns(record: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """Return role and text of each turn; the first is that of `system`, if the record has one."""
    turns = [(ROLES[turn["from"]], turn["value"]) for turn in record["conversations"]]
    return [("system", record["system"]), *turns] if record.get("system") else turns


def _turns_problem(record: Mapping[str, Any], keys: RecordKeys) -> str | None:
    """Return what is wrong with the turns or the system text of a record, or None."""
    if "conversations" not in record:
        names = ", ".join(map(printable, record)) or "none"
        return f"missing 'conversations': expected a list of turns; keys of the record: {names}"
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        return f"conversations: expected a list of turns, got {describe_value(turns)}"
    system = record.get("system")
    if system not in (None, "") and (problem := text_problem(record, "system") or _draw_slot_problem(system)):
        return problem
    before = "system" if system else None
    for number, turn in enumerate(turns):
        if problem := _turn_problem(turn, before) or keys.problem(turn):
            return f"turn {number}: {problem}"
        before = turn["from"]
    if not any(ROLES[turn["from"]] == "assistant" for turn in turns):
        return "no turn to train on: expected at least one turn from 'gpt'"
    return None


def _turn_problem(turn: Any, before: str | None) -> str | None:
    """Return what is wrong with a turn after one from `before`, or None."""
    if not isinstance(turn, dict):
        return f'expected {{"from": ..., "value": ...}}, got {describe_value(turn)}'
    role = turn.get("from")
    if not isinstance(role, str):
        return f"from: expected one of {', '.join(ROLES)}, got {describe_value(role)}"
    if role not in ROLES:
        message = f"from: expected one of {', '.join(ROLES)}, got {describe_value(role)}"
        return f"{message}; {did_you_mean(role, ROLES)}"
    if before is not None and ROLES[role] == ROLES[before]:
        return f"from: expected another speaker after a turn from '{before}', got '{role}'; join the two turns in one"
    return text_problem(turn, "value") or _draw_slot_problem(turn["value"])


def _draw_slot_problem(text: str) -> str | None:
    if DRAW_SLOT not in text:
        return None
    return (
        f"{DRAW_SLOT} is not supported here; write {READ_SLOT}, which in a turn of 'gpt' is an image to draw, or "
        "another spelling if it is only text"
    )
