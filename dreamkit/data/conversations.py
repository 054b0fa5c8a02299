"""A data set of conversations with images, in the JSON format of LLaVA (arXiv 2304.08485)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, paths_problem, text_problem
from dreamkit.document import DRAW_SLOT, READ_SLOT, Document, Role
from dreamkit.errors import did_you_mean

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
            images of `human` turns, and is trained to draw those of `gpt` turns.
        images: folder of relative image paths; None is the folder of the file.
    """

    path: Path
    images: Path | None = None


class Conversations(Dataset):
    """A data set with one document per conversation."""

    Config = ConversationsConfig

    def __init__(self, config: ConversationsConfig) -> None:
        self.folder = config.images or config.path.parent
        self.records = Records(config.path, _problem)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        where, record = self.records[index]
        paths = iter(_images(record))
        turns = []
        for turn in record["conversations"]:
            role, text = ROLES[turn["from"]], turn["value"]
            pictures = [open_picture(self.folder / next(paths), where) for _ in range(text.count(READ_SLOT))]
            if role == "assistant":
                text = text.replace(READ_SLOT, DRAW_SLOT)
            turns.append(Document.interleave(text, pictures, name=where, role=role))
        return reduce(add, turns)


def _images(record: Mapping[str, Any]) -> list[str]:
    images = record.get("image", [])
    return [images] if isinstance(images, str) else list(images)


def _problem(record: Mapping[str, Any]) -> str | None:
    if "conversations" not in record:
        return f"missing 'conversations': expected a list of turns; keys of the record: {', '.join(record) or 'none'}"
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        return f"conversations: expected a list of turns, got {turns!r}"
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            return f'turn {number}: expected {{"from": ..., "value": ...}}, got {turn!r}'
        if turn.get("from") not in ROLES:
            role = turn.get("from")
            return f"turn {number}: from: expected one of {', '.join(ROLES)}, got {role!r}; {did_you_mean(role, ROLES)}"
        if problem := text_problem(turn, "value"):
            return f"turn {number}: {problem}"
        if DRAW_SLOT in turn["value"]:
            return (
                f"turn {number}: {DRAW_SLOT} is not supported here; write {READ_SLOT}, which in a turn of 'gpt' is an "
                "image to draw, or another spelling if it is only text"
            )
    if not any(ROLES[turn["from"]] == "assistant" for turn in turns):
        return "no turn to train on: expected at least one turn from 'gpt'"
    problem = None if isinstance(record.get("image"), str) else paths_problem(record, "image")
    if problem is None:
        slots, images = sum(turn["value"].count(READ_SLOT) for turn in turns), len(_images(record))
        if slots != images:
            return f"expected one image for each {READ_SLOT} in the turns, got {images} for {slots}"
    return problem
