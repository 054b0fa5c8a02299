"""A data set of conversations with images: those of LLaVA (arXiv 2304.08485), ShareGPT's files, OpenAI's messages.

In the first two, a text has an `<image>` for each image, and the record has their paths:

    {"image": path, "conversations": [{"from": "human", "value": "<image> ..."}, {"from": "gpt", "value": ...}]}
    {"images": [path], "messages": [{"role": "user", "content": "<image> ..."}, {"role": "assistant", "content": ...}]}

In the third, a turn has its images among its parts (`document_records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.document_records import DocumentRecords
from dreamkit.data.examples import write_images, write_lines
from dreamkit.data.record_keys import RecordKeys
from dreamkit.data.records import ImagePaths, Records, check_settings, paths_in, text_problem
from dreamkit.data.turn_roles import ALL_ROLES, role_problem
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document, Role
from dreamkit.errors import describe_value, printable

# Keys of the role and the text of a turn, by the key of the turns.
TURN_KEYS: Mapping[str, tuple[str, str]] = {
    "conversations": ("from", "value"),
    "messages": ("role", "content"),
}
IMAGE_KEYS = ("image", "images")


@dataclass(frozen=True)
class ConversationsConfig:
    """The recipe section of `conversations`.

    Attributes:
        path: JSON array or JSON Lines file of `{"image": path, "conversations": [{"from": "human", "value": ...}]}` or
            `{"images": paths, "messages": [{"role": "user", "content": ...}]}`. `image` or `images` is a path or a list
            of paths, one for each `<image>` in the turns, in order. Or the content of a message is a list of parts, of
            texts and images. The model reads the images of the user's turns, and is trained to draw those of the
            assistant's. `system` may hold a system text.
        images: folder of the images, which no path may leave; None is the folder of the file, and paths may leave it.
        index: folder of the index of a file of records; None is the user's cache folder.
    """

    path: Path
    images: Path | None = None
    index: Path | None = None


class Conversations(Dataset):
    """A data set with one document per conversation."""

    Config = ConversationsConfig
    is_thread_safe = True

    def __init__(self, config: ConversationsConfig) -> None:
        self.images = ImagePaths(config.path, config.images)
        self.parts = DocumentRecords(self.images, draw=True)
        self.keys = RecordKeys((*TURN_KEYS, *IMAGE_KEYS, "system"))
        self.turn_keys = {
            name: RecordKeys(keys, slots=(READ_SLOT,), within=name) for name, keys in TURN_KEYS.items()
        }
        self.records = Records(
            config.path,
            self._problem,
            notes=self._notes,
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
        if _has_parts(record):
            return self.parts.document(record, where)
        paths = iter(_paths(record))
        turns = []
        for role, text in _turns(record):
            pictures = [self.images.open(next(paths), where) for _ in range(text.count(READ_SLOT))]
            if role == "assistant":
                text = text.replace(READ_SLOT, DRAW_SLOT)
            turns.append(Document.interleave(text, pictures, name=where, role=role))
        return reduce(add, turns)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "records": self.records.sha256}

    def _notes(self) -> list[str]:
        keys = [self.keys, *self.turn_keys.values()]
        return [*(note for each in keys for note in each.notes()), *self.parts.notes()]

    def _problem(self, record: Mapping[str, Any]) -> str | None:
        if _has_parts(record):
            return _choice_problem(record, TURN_KEYS) or self.parts.problem(record)
        problem = self.keys.problem(record) or self._turns_problem(record) or self._images_problem(record)
        if problem is None:
            turns = _turns(record)
            slots, images = sum(text.count(READ_SLOT) for _, text in turns), len(_paths(record))
            if slots != images:
                return f"expected one image for each {READ_SLOT} in the turns, got {images} for {slots}"
            for _, text in turns:
                self.turn_keys[_name_of_turns(record)].count_placeholders(text)
        return problem

    def _images_problem(self, record: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the paths of a record, or None."""
        if problem := _choice_problem(record, IMAGE_KEYS):
            return problem
        problems = (self.images.list_problem(record, key, or_path=True) for key in IMAGE_KEYS)
        return next(filter(None, problems), None)

    def _turns_problem(self, record: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the turns or the system text of a record, or None."""
        if problem := _choice_problem(record, TURN_KEYS):
            return problem
        name = _name_of_turns(record)
        if not name:
            names = ", ".join(map(printable, record)) or "none"
            return f"missing 'conversations' or 'messages': expected a list of turns; keys of the record: {names}"
        return _turns_problem(record, name, self.turn_keys[name])


def _has_parts(record: Mapping[str, Any]) -> bool:
    """Return True if a record has messages with their images in parts."""
    turns = record.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns
    )


def _paths(record: Mapping[str, Any]) -> list[str]:
    return [path for key in IMAGE_KEYS for path in paths_in(record, key)]


def _choice_problem(record: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return an error if several of the keys have a value. Null, an empty text and an empty list count as absent."""
    if len(present := [key for key in keys if record.get(key)]) > 1:
        return f"expected one of {' and '.join(present)}, got both; remove one"
    return None


def _name_of_turns(record: Mapping[str, Any]) -> str:
    """Return the key of the turns, or an empty string. An empty list is the turns only if there are no others."""
    present = [name for name in TURN_KEYS if record.get(name) is not None]
    return max(present, key=lambda name: bool(record[name]), default="")


def _turns(record: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """Return role and text of each turn; the first is that of `system`, if the record has one."""
    name = _name_of_turns(record)
    role, text = TURN_KEYS[name]
    turns = [(ALL_ROLES[turn[role]], turn[text]) for turn in record[name]]
    return [("system", record["system"]), *turns] if record.get("system") else turns


def _turns_problem(record: Mapping[str, Any], name: str, keys: RecordKeys) -> str | None:
    """Return what is wrong with the turns under `name` or the system text of a record, or None."""
    turns, (role, text) = record[name], TURN_KEYS[name]
    if not isinstance(turns, list) or not turns:
        return f"{name}: expected a list of turns, got {describe_value(turns)}"
    system = record.get("system")
    if system not in (None, "") and (problem := text_problem(record, "system") or _draw_slot_problem(system)):
        return problem
    before = "system" if system else None
    for number, turn in enumerate(turns):
        if problem := _turn_problem(turn, role, text, before) or keys.problem(turn):
            return f"turn {number}: {problem}"
        before = turn[role]
    if not any(ALL_ROLES[turn[role]] == "assistant" for turn in turns):
        return "no turn to train on: expected at least one turn of 'gpt' or 'assistant'"
    return None


def _turn_problem(turn: Any, role: str, text: str, before: str | None) -> str | None:
    """Return what is wrong with a turn after one of the role `before`, or None."""
    if not isinstance(turn, dict):
        return f'expected {{"{role}": ..., "{text}": ...}}, got {describe_value(turn)}'
    if problem := role_problem(turn, role, ALL_ROLES):
        return problem
    name = turn[role]
    if before is not None and ALL_ROLES[name] == ALL_ROLES[before]:
        return f"{role}: expected another speaker after a turn from '{before}', got '{name}'; join the two turns in one"
    return text_problem(turn, text) or _draw_slot_problem(turn[text])


def _draw_slot_problem(text: str) -> str | None:
    if DRAW_SLOT not in text:
        return None
    return (
        f"{DRAW_SLOT} is not supported here; write {READ_SLOT}, which in a turn of 'gpt' is an image to draw, or "
        "another spelling if it is only text"
    )
