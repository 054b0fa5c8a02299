"""Documents and records of MMC4 for tests."""

import json
from pathlib import Path
from typing import Any

from dreamkit_digits import digits
from dreamkit_digits.documents import Digits
from tar_files import encoded, write_tar

KINDS = {"reading": 1.0, "drawing": 1.0, "counting": 2.0, "sums": 4.0}
DOCUMENTS = [Digits(Digits.Config(documents=KINDS))[number] for number in range(30)]


def digit(number: int) -> Any:
    return digits.load("train").image(number)


def record(texts: list[Any], *images: tuple[str, int, float | None], **more: Any) -> dict[str, Any]:
    infos = [
        {"image_name": name, "matched_text_index": index, "matched_sim": similarity}
        for name, index, similarity in images
    ]
    return {"text_list": texts, "image_info": infos, **more}


def write_record(folder: Path, made: dict[str, Any], images: dict[str, int], form: str) -> Path:
    """Write one record and images, digits by their names, in a tar or beside a file of lines."""
    if form == "tar":
        members = [(f"k.{name}", encoded(digit(number))) for name, number in images.items()]
        return write_tar(folder / "a.tar", [("k.json", json.dumps(made).encode()), *members])
    (folder / "images").mkdir(exist_ok=True)
    for name, number in images.items():
        (folder / "images" / name).write_bytes(encoded(digit(number)))
    (folder / "a.jsonl").write_text(json.dumps(made) + "\n")
    return folder / "a.jsonl"
