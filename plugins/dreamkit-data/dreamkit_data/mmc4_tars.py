"""MMC4's documents in tars, as DreamLLM stored them: `KEY.json` and an image `KEY.STEM.jpg` for each image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dreamkit import DocumentError, Location, decode_picture, excerpt
from dreamkit_data.member_records import parsed_record
from dreamkit_data.mmc4_records import Selection, record_problem, with_remedy
from dreamkit_data.spans import Spans, changed_error
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

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RECORD: Final = "json"
VERSION: Final = 1  # of the index


class TarDocuments:
    """Records in tars with their images. An image that is not in the archive is left out of its document."""

    def __init__(self, files: Sequence[Location], selection: Selection, index: Path | None) -> None:
        self.selection = selection
        self._spans = Spans(
            files,
            partial(tar_index, partial(_choose, selection)),
            kind="mmc4 tars",
            version=VERSION,
            settings=asdict(selection),
            folder=index,
        )
        self.facts = self._spans.facts
        self.names_hash = self._spans.names_hash

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> tuple[str, dict[str, Any], dict[int, Picture]]:
        """Return the place of a document, its record, and its images by their numbers in `image_info`.

        Raises:
            DocumentError: an image cannot be decoded.
            StorageError: the archive is gone, cannot be read, or changed since it was indexed.
        """
        where, sample, content = read_tar_sample(self._spans, index)
        record = parsed_record(content(sample.members[RECORD])) if RECORD in sample.members else None
        if record is None or record_problem(record) is not None:
            raise changed_error(self._spans[index].path)
        images = _image_members(record, sample)
        numbers = self.selection.numbers(record, images.__contains__)
        names = {number: record["image_info"][number]["image_name"] for number in numbers}
        return (
            where,
            record,
            {
                number: decode_picture(content(images[name]), f"{where}: {excerpt(name)}")
                for number, name in names.items()
            },
        )


def _choose(
    selection: Selection, sample: TarSample, content: Content, leave_out: LeaveOut
) -> Collection[Member]:
    """Return the record and the images of a document; none if it is left out.

    Raises:
        DocumentError: the record is no JSON object, or not of MMC4's form.
    """
    if RECORD not in sample.members:
        leave_out(f"without a .{RECORD}")
        return ()
    member = sample.members[RECORD]
    if member.size > MOST_TEXT:
        leave_out(f"with a .{RECORD} of more than {MOST_TEXT:,} bytes")
        return ()
    record = parsed_record(content(member))
    problem = "expected a JSON object" if record is None else record_problem(record)
    if record is None or problem is not None:
        assert problem is not None, "a member that is no record has a problem"
        raise DocumentError(f".{RECORD}: {with_remedy(problem, 'sample')}")
    images = _image_members(record, sample)
    for info in record["image_info"]:
        if info["image_name"] not in images:
            leave_out("not in its archive", noun="image")
    numbers = selection.numbers(record, images.__contains__)
    if not numbers:
        leave_out(selection.empty_reason(record, images.__contains__), noun="document")
        return ()
    return [member, *(images[record["image_info"][number]["image_name"]] for number in numbers)]


def _image_members(record: Mapping[str, Any], sample: TarSample) -> dict[str, Member]:
    """Return the members of a record's images by `image_name`: their suffixes begin with its stem."""
    members: dict[str, Member] = {}
    for info in record["image_info"]:
        name = info["image_name"].lower()
        # DreamLLM's stems end at the first dot
        stems = dict.fromkeys((name.rpartition(".")[0] or name, name.partition(".")[0]))
        suffixes = [name, *(f"{stem}.{suffix}" for stem in stems for suffix in IMAGES)]
        present = next((suffix for suffix in suffixes if suffix in sample.members), None)
        if present is not None:
            members[info["image_name"]] = sample.members[present]
    return members
