"""The data set `tars`: pairs of an image and a caption in tar archives, as img2dataset writes them."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from dreamkit import (
    ConfigError,
    Dataset,
    Document,
    Location,
    Url,
    count,
    decode_picture,
    describe_value,
)
from dreamkit_data.captions import Direction, choose_caption, pair, weight_problems
from dreamkit_data.example_images import COLOURS, SIDE, coloured_png, write_small_tar
from dreamkit_data.first_names import FirstNames, unknown_lines
from dreamkit_data.left_out import empty_error, left_out_lines, named_lines
from dreamkit_data.member_records import Bounds, filtered_reason, parsed_record
from dreamkit_data.patterns import matching_files
from dreamkit_data.spans import Spans
from dreamkit_data.tar_members import Member
from dreamkit_data.tar_samples import (
    IMAGES,
    MOST_TEXT,
    Content,
    LeaveOut,
    TarSample,
    read_tar_sample,
    tar_index,
)

RECORD: Final = "json"
VERSION: Final = 3  # of the index


@dataclass(frozen=True)
class TarsConfig:
    """The recipe section of `tars`.

    Attributes:
        path: archives: a file, a folder of `.tar` files, a pattern such as `/data/{00000..01000}.tar` or `/data/*.tar`,
            or a list of these; or URLs of objects in buckets, such as `s3://bucket/laion/*.tar`.
        direction: `draw` the image from its caption, or `read` the image and write the caption.
        caption: where the caption is: `txt`, or another suffix of a member; or `json:KEY`, a key of the sample's
            `.json`. A section of several with their weights has one chosen at random for each use of a sample, among
            those that it has: `{txt: 1, "json:alt": 2}`.
        filters: bounds of numbers in the sample's `.json`, by their keys: `{width: {least: 256}}`. Others are left out.
        index: folder of the index; None is the user's cache folder.
    """

    path: Path | Url | list[Path | Url]
    direction: Direction = "draw"
    caption: str | dict[str, float] = "txt"
    filters: dict[str, Bounds] = field(default_factory=dict)
    index: Path | None = None

    def __post_init__(self) -> None:
        problems = weight_problems(self.captions)
        for text in self.captions:
            if not CaptionPlace.parse(text).is_possible:
                key = f"caption.{text}" if isinstance(self.caption, dict) else "caption"
                problems[key] = (
                    f"expected txt, another suffix of a text or json:KEY, got {describe_value(text)}"
                )
        if problems:
            raise ConfigError(problems)

    @property
    def captions(self) -> dict[str, float]:
        """The weights of captions by the names of their places."""
        return dict(self.caption) if isinstance(self.caption, dict) else {self.caption: 1.0}


class CaptionPlace(NamedTuple):
    """A place of a caption: a member of the sample by its suffix, or a key of the `.json`."""

    suffix: str
    key: str | None

    @classmethod
    def parse(cls, text: str) -> CaptionPlace:
        """Return the place that a recipe names, such as `txt` or `json:KEY`."""
        suffix, colon, key = text.partition(":")
        return cls(suffix.lower(), key if colon else None)

    def __str__(self) -> str:
        return self.suffix if self.key is None else f"{self.suffix}:{self.key}"

    @property
    def is_possible(self) -> bool:
        """Flag: a sample can have a caption here."""
        if self.key is not None:
            return self.suffix == RECORD and bool(self.key)
        return bool(self.suffix) and not self.suffix.startswith(".") and self.suffix not in (RECORD, *IMAGES)


class Tars(Dataset):
    """A data set with one document for each sample that has an image and a caption and passes the filters."""

    Config = TarsConfig
    is_thread_safe = True

    def __init__(self, config: TarsConfig) -> None:
        self.config = config
        self.places = {text: CaptionPlace.parse(text) for text in config.captions}
        self._spans = Spans(
            matching_files(config.path, (".tar",)),
            partial(_index, tuple(self.places.values()), config.filters),
            kind="tars",
            version=VERSION,
            settings={
                "captions": sorted(self.places.values()),
                "filters": {key: asdict(bounds) for key, bounds in config.filters.items()},
            },
            folder=config.index,
        )
        self.facts = self._spans.facts
        lines = [
            *left_out_lines(self.facts),
            *unknown_lines(self.facts, map(str, self.places.values()), config.filters),
        ]
        if not len(self):
            raise empty_error(config.path, "samples with an image and a caption", lines)
        self.notes = named_lines(config.path, lines)

    @classmethod
    def tiny_config(cls, folder: Path) -> TarsConfig:
        members: list[tuple[str, bytes]] = []
        for number, colour in enumerate(COLOURS):
            record = json.dumps({"status": "success", "alt": colour, "width": SIDE}).encode()
            caption = f"a {colour} square".encode()
            members += [
                (f"{number}.png", coloured_png(colour)),
                (f"{number}.json", record),
                (f"{number}.txt", caption),
            ]
        write_small_tar(folder / "00000.tar", members)
        return TarsConfig(folder, caption={"txt": 2, "json:alt": 1}, filters={"width": Bounds(least=SIDE)})

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Document:
        return self._document(index, None)

    def sample(self, index: int, choices: random.Random) -> Document:
        """Return document `index` with one of its captions, chosen by weight."""
        return self._document(index, choices)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "names and samples of archives": self._spans.names_hash()}

    def _document(self, index: int, choices: random.Random | None) -> Document:
        where, sample, content = read_tar_sample(self._spans, index)
        image = next(sample.members[suffix] for suffix in IMAGES if suffix in sample.members)
        picture = decode_picture(content(image), f"{where}.{image.name.rpartition('.')[2]}")
        record = parsed_record(content(sample.members[RECORD])) if RECORD in sample.members else None
        captions = {
            text: _caption_at(place, sample, content, record or {}) for text, place in self.places.items()
        }
        caption = choose_caption(captions, self.config.captions, where, choices)
        return pair(picture, caption, self.config.direction, where)


def _index(
    places: Sequence[CaptionPlace], filters: Mapping[str, Bounds], path: Location
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the places of an archive's samples, and facts: those of `tar_index` and `FirstNames`."""
    names = FirstNames()
    rows, facts = tar_index(partial(_choose, places, filters, names), path)
    return rows, facts | names.facts()


def _choose(
    places: Sequence[CaptionPlace],
    filters: Mapping[str, Bounds],
    names: FirstNames,
    sample: TarSample,
    content: Content,
    leave_out: LeaveOut,
) -> Collection[Member]:
    """Return the image, and the members that can have its caption; none if the sample is left out."""
    images = [suffix for suffix in IMAGES if suffix in sample.members]
    if (reason := _reason(len(images), places, filters, names, sample, content)) is not None:
        leave_out(reason)
        return ()
    needed = {images[0], *(place.suffix for place in places)}
    return [member for suffix, member in sample.members.items() if suffix in needed]


def _reason(
    images: int,
    places: Sequence[CaptionPlace],
    filters: Mapping[str, Bounds],
    names: FirstNames,
    sample: TarSample,
    content: Content,
) -> str | None:
    """Return why a sample is left out, or None."""
    if images != 1:
        return f"with {count(images, 'image')}" if images else "with no image"
    texts = {suffix for suffix in (RECORD, *(place.suffix for place in places)) if suffix in sample.members}
    if any(sample.members[suffix].size > MOST_TEXT for suffix in texts):
        return f"with a text of more than {MOST_TEXT:,} bytes"
    record: Mapping[str, Any] = {}
    if RECORD in texts:
        parsed = parsed_record(content(sample.members[RECORD]))
        if parsed is None:
            return f"with a damaged .{RECORD}"
        record = parsed
    names.add((suffix for suffix in sample.members if suffix not in (RECORD, *IMAGES)), record)
    if record.get("status", "success") != "success":
        return "whose download failed ('status')"
    reason = filtered_reason(record, filters)
    if reason is None and all(_caption_at(place, sample, content, record) is None for place in places):
        return "without a caption"
    return reason


def _caption_at(
    place: CaptionPlace, sample: TarSample, content: Content, record: Mapping[str, Any]
) -> str | None:
    """Return the caption at a place without the blanks around it, or None if it is missing or blank.

    It has lone surrogates where a member is not UTF-8, or where JSON escapes them.
    """
    text: Any = None
    if place.key is not None:
        text = record.get(place.key)
    elif place.suffix in sample.members:
        text = content(sample.members[place.suffix]).decode("utf-8", "surrogateescape")
    return text.strip().removeprefix("\ufeff").strip() or None if isinstance(text, str) else None
