"""Conversations about images, in the JSON format of LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from dreamkit.data.dataset import Dataset
from dreamkit.data.records import Records, open_picture, wrong_text, wrong_texts
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
    """`path`: a JSON array, or JSON Lines, of `{"image": path, "conversations": [{"from": "human", "value": ...}]}`.

    `image` is a path or a list of them, one for each `<image>` in the turns, in order. The model reads what a human
    shows and learns to draw what `gpt` shows. Image paths are relative to `images`, or to the folder of the file.
    """

    path: Path
    images: Path | None = None


class Conversations(Dataset):
    """One document a conversation."""

    Config = ConversationsConfig

    def __init__(self, config: ConversationsConfig) -> None:
        self.folder = config.images or config.path.parent
        self.records = Records(config.path, _wrong)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Document:
        where, record = self.records[index]
        paths = iter(_images(record))
        turns = []
        for turn in record["conversations"]:
            role, said = ROLES[turn["from"]], turn["value"]
            pictures = [open_picture(self.folder / next(paths), where) for _ in range(said.count(READ_SLOT))]
            if role == "assistant":
                said = said.replace(READ_SLOT, DRAW_SLOT)
            turns.append(Document.interleave(said, pictures, name=where, role=role))
        return reduce(add, turns)


def _images(record: Mapping[str, Any]) -> list[str]:
    images = record.get("image", [])
    return [images] if isinstance(images, str) else list(images)


def _wrong(record: Mapping[str, Any]) -> str | None:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        return f"'conversations' is {turns!r}, but a list of turns is wanted (its keys: {', '.join(record) or 'none'})"
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            return f'turn {number} is {turn!r}, but {{"from": ..., "value": ...}} is wanted'
        if turn.get("from") not in ROLES:
            return f"turn {number} is from {turn.get('from')!r}; {did_you_mean(turn.get('from'), ROLES)}"
        wrong = wrong_text(turn, "value")
        if wrong is not None:
            return f"turn {number}: {wrong}"
        if DRAW_SLOT in turn["value"]:
            return (
                f"turn {number} holds {DRAW_SLOT}, which stands for no image here; write {READ_SLOT} (in a turn of "
                "'gpt' the model learns to draw it), or spell it otherwise where it is only text"
            )
    if not any(ROLES[turn["from"]] == "assistant" for turn in turns):
        return "no turn is from 'gpt', so there is nothing to learn"
    wrong = None if isinstance(record.get("image"), str) else wrong_texts(record, "image")
    if wrong is None:
        slots = sum(turn["value"].count(READ_SLOT) for turn in turns)
        if slots != len(_images(record)):
            return f"{len(_images(record))} images for {slots} slots ({READ_SLOT}) in the turns; give one for each"
    return wrong
