"""The data set `coco`: images with captions, in the JSON of COCO, Karpathy's splits or Localized Narratives."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from dreamkit import Dataset, Document, DocumentError, StorageError, count, indexed, printable
from dreamkit_data.captions import Direction, pair
from dreamkit_data.coco_files import NARRATIVES, CaptionedImage, narrated_names, read_images
from dreamkit_data.example_images import COLOURS, coloured_png
from dreamkit_data.patterns import matching_files
from dreamkit_data.spans import changed_error
from dreamkit_data.stored_images import image_mode, image_paths

VERSION: Final = 2
BYTE: Final = np.dtype([("byte", "u1")])


@dataclass(frozen=True)
class CocoConfig:
    """The recipe section of `coco`.

    Attributes:
        path: `captions_*.json` of COCO, `dataset_coco.json` of Karpathy's splits, or JSON Lines of Localized
            Narratives: a file, a pattern, or a list of these.
        direction: `draw` the image from its caption, or `read` the image and write the caption.
        images: folder of the images; None is the folder of the file.
        split: splits to read, in Karpathy's file, such as `[train, restval]`.
        index: folder of the index; None is the user's cache folder.
    """

    path: Path | list[Path]
    direction: Direction = "draw"
    images: Path | None = None
    split: str | list[str] | None = None
    index: Path | None = None


class Coco(Dataset):
    """A data set with one document per image that has a caption."""

    Config = CocoConfig
    is_thread_safe = True

    def __init__(self, config: CocoConfig) -> None:
        self.config = config
        self.files = matching_files(config.path, (".json", ".jsonl"))
        splits = [config.split] if isinstance(config.split, str) else config.split
        build = partial(list_images, splits=splits)
        self.index = indexed(
            self.files, build, kind="coco", version=VERSION, settings={"split": splits}, folder=config.index
        )
        facts = self.index.facts
        kinds = sorted({each["kind"] for each in facts})
        if len(kinds) > 1:
            raise DocumentError(
                f"{printable(self.files[0])}: expected files of one format, got {' and '.join(kinds)}; make a data set "
                "of each"
            )
        self.is_narrated = kinds == [NARRATIVES]
        numbers = np.array([each["images"] for each in facts])
        self._before = np.concatenate([[0], np.cumsum(numbers)])  # records of earlier files
        tails = [np.array(self._tail(file, number)) for file, number in enumerate(numbers)]
        self._ends = [ends for ends, _ in tails]
        ids = np.concatenate([ids for _, ids in tails])
        self._records, self._bounds = _grouped(ids if self.is_narrated else np.arange(len(ids)))
        if not len(self):
            without = sum(each["without"] for each in facts)
            reason = (
                f"left out: {count(f'{without:,}', 'image')} without a caption"
                if without
                else "correct the path of the data set"
            )
            raise DocumentError(f"{printable(self.files[0])}: no captions; {reason}")
        image_paths(self.files[0], config.images)
        self.notes = [
            f"{printable(file)}: left out: {count(each['without'], 'image')} without a caption"
            for file, each in zip(self.files, facts, strict=True)
            if each["without"]
        ]

    @classmethod
    def tiny_config(cls, folder: Path) -> CocoConfig:
        images, annotations = [], []
        for number, colour in enumerate(COLOURS):
            (folder / f"{colour}.png").write_bytes(coloured_png(colour))
            images.append({"id": number, "file_name": f"{colour}.png"})
            captions = (f"a {colour} square", f"a {colour} tile")
            annotations += [{"image_id": number, "caption": caption} for caption in captions]
        (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        return CocoConfig(folder / "captions.json")

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, index: int) -> Document:
        return self._document(index, None)

    def sample(self, index: int, choices: random.Random) -> Document:
        """Return document `index` with one of its captions."""
        return self._document(index, choices)

    def fingerprint(self) -> dict[str, str]:
        hashed = hashlib.sha256()
        for file in self.index:
            hashed.update(file["byte"].data)
        return super().fingerprint() | {"names and captions": hashed.hexdigest()[:32]}

    def _document(self, index: int, choices: random.Random | None) -> Document:
        self.check_index(index)
        first, end = self._bounds[index], self._bounds[index + 1]
        table, image = self._record(int(self._records[first]))
        captions = list(image.captions)
        for number in self._records[first + 1 : end]:
            captions += self._record(int(number))[1].captions
        where = f"{printable(table)}!{image.id}"
        names = narrated_names(image.id, image.names[0]) if self.is_narrated else image.names
        paths = image_paths(table, self.config.images)
        files = {name: os.path.join(paths.folder, name) for name in names}
        stored = (name for name, file in files.items() if image_mode(file, follow_link=True) is not None)
        name = next(stored, names[0])
        caption = captions[0] if choices is None else choices.choice(captions)
        return pair(paths.open(name, where), caption, self.config.direction, where)

    def _record(self, number: int) -> tuple[Path, CaptionedImage]:
        """Return the file of a record, and the record."""
        file = int(np.searchsorted(self._before, number, side="right")) - 1
        place, ends = number - int(self._before[file]), self._ends[file]
        data = self.index[file]["byte"][ends[place - 1] if place else 0 : ends[place]]
        try:
            return self.files[file], CaptionedImage(*json.loads(data.tobytes()))
        except (ValueError, TypeError) as error:
            raise changed_error(self.files[file]) from error

    def _tail(self, file: int, number: int) -> np.ndarray:
        """Return the ends of the records of a file, and the ids of their images."""
        if self.index[file].dtype != BYTE or len(self.index[file]) < 16 * number:
            raise changed_error(self.files[file])
        data = self.index[file]["byte"]
        return np.frombuffer(data[len(data) - 16 * number :].tobytes(), "<i8").reshape(2, number)


def _grouped(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of `ids` by id, in the order of their first ones, and the bounds of each id among them."""
    _, firsts, groups = np.unique(ids, return_index=True, return_inverse=True)
    first = firsts[groups]  # place of the first record of the same id
    places = np.argsort(first, kind="stable")
    starts = np.flatnonzero(np.diff(first[places], prepend=-1))
    return places, np.append(starts, len(ids))


def list_images(path: Path, splits: Sequence[str] | None) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the images of a file that have captions, as the bytes of JSON, and facts about them.

    Raises:
        DocumentError: another format, a damaged file, or `splits` that do not fit it.
    """
    name = printable(path)
    if not os.path.isfile(path):  # to open a named pipe may wait forever
        raise DocumentError(f"{name}: expected a regular file")
    try:
        with path.open("rb") as file:
            kind, images = read_images(file, name, splits)
    except OSError as error:
        raise StorageError(f"{name}: cannot read the file: {error.strerror}") from error
    captioned = [image for image in images if image.captions]
    texts = [json.dumps(image).encode() for image in captioned]
    ends = np.cumsum([len(text) for text in texts], dtype="<i8")
    ids = np.array([image.id for image in captioned], "<i8")
    data = b"".join([*texts, ends.tobytes(), ids.tobytes()])
    return np.frombuffer(data, BYTE), {
        "kind": kind,
        "images": len(texts),
        "without": len(images) - len(texts),
    }
