"""Files of captions of COCO: its own JSON, Karpathy's splits, and Localized Narratives. Their content shows which."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

from dreamkit import DocumentError, count, describe_value, did_you_mean, excerpt
from dreamkit_data.member_records import missing_key

MOST_BYTES: Final = 2**30  # of a JSON file or a line; the largest of COCO has 150 MB
CAPTIONS, KARPATHY, NARRATIVES = "COCO captions", "Karpathy's splits", "Localized Narratives"
MOST_DIGITS: Final = 12  # of the number of an image


class CaptionedImage(NamedTuple):
    """An image with its captions.

    Attributes:
        id: number of the image.
        names: possible paths from the folder of images.
        captions: captions that are not blank; there may be none.
    """

    id: int
    names: Sequence[str]
    captions: Sequence[str]


def read_images(file: BinaryIO, name: str, splits: Sequence[str] | None) -> tuple[str, list[CaptionedImage]]:
    """Return the format of a file, and its images in order. Those of Localized Narratives have one caption each.

    Raises:
        DocumentError: another format, a damaged file, or `splits` that do not fit it.
    """
    first = file.readline(MOST_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    value = _first_value(first)
    if isinstance(value, dict) and "image_id" in value and "caption" in value:
        kind, images = NARRATIVES, list(_narratives(file, value, name))
    else:
        rest = file.read(MOST_BYTES + 1 - len(first))
        if value is None or rest.strip():
            value = _parsed(first + rest, name)
        if not isinstance(value, dict) or not isinstance(value.get("images"), list):
            keys = (
                ", ".join(excerpt(key) for key in value) if isinstance(value, dict) else describe_value(value)
            )
            raise DocumentError(
                f"{name}: expected the keys images and annotations of COCO's captions, images with sentences of "
                f"Karpathy's splits, or lines with image_id and caption of Localized Narratives, got {excerpt(keys)}"
            )
        if "annotations" in value or not _has_sentences(value["images"]):
            kind, images = CAPTIONS, _captions(value, name)
        else:
            kind, images = KARPATHY, _karpathy(value["images"], name, splits)
    if splits is not None and kind != KARPATHY:
        raise DocumentError(f"{name}: 'split' is set, but {kind} have one split in a file; remove 'split'")
    return kind, images


def narrated_names(id: int, split: str) -> list[str]:
    """Return the possible paths of an image of Localized Narratives: as released in 2017, and in 2014."""
    names = [f"{id:012d}.jpg", f"{split}/{id:012d}.jpg"]
    for earlier in ("train2014", "val2014"):
        names += [f"COCO_{earlier}_{id:012d}.jpg", f"{earlier}/COCO_{earlier}_{id:012d}.jpg"]
    return names


def _captions(value: Mapping[str, Any], name: str) -> list[CaptionedImage]:
    annotations = _value(value, "annotations", name)
    names: dict[int, list[str]] = {}
    captions: dict[int, list[str]] = {}
    for number, image in enumerate(value["images"]):
        where = f"{name}: images[{number}]"
        id = _integer(image, "id", where)
        if id in names:
            raise DocumentError(f"{where}: expected each id once, got {id} twice; remove one")
        names[id] = _names(image, where)
        captions[id] = []
    if not isinstance(annotations, list):
        raise DocumentError(f"{name}: annotations: expected a list, got {describe_value(annotations)}")
    for number, annotation in enumerate(annotations):
        where = f"{name}: annotations[{number}]"
        id = _integer(annotation, "image_id", where)
        if id not in captions:
            raise DocumentError(f"{where}: image_id: expected the id of an image, got {id}")
        if caption := _string(annotation, "caption", where).strip():
            captions[id].append(caption)
    return [CaptionedImage(id, names[id], captions[id]) for id in names]


def _names(image: Any, where: str) -> list[str]:
    """Return the possible paths of an image: its name, and its name in the folder of its address, such as train2017."""
    name = _path(image, "file_name", where)
    address, _, last = str(image.get("coco_url", "")).rpartition("/")
    folder = address.rpartition("/")[2]
    return [name, f"{folder}/{name}"] if last == name and _is_inside(folder) else [name]


def _has_sentences(images: Sequence[Any]) -> bool:
    """Return True if images have their captions, as Karpathy's do; False if captions stand apart."""
    first = images[0] if images else {"sentences": []}
    return not isinstance(first, dict) or bool(first.keys() & {"sentences", "split"})


def _karpathy(values: Sequence[Any], name: str, splits: Sequence[str] | None) -> list[CaptionedImage]:
    numbers: Counter[str] = Counter()
    images = []
    for number, image in enumerate(values):
        where = f"{name}: images[{number}]"
        split = _string(image, "split", where)
        numbers[split] += 1
        if splits is None or split not in splits:
            continue
        sentences = image.get("sentences")
        if not isinstance(sentences, list):
            raise DocumentError(f"{where}: sentences: expected a list, got {describe_value(sentences)}")
        captions = [
            _string(sentence, "raw", f"{where}: sentences[{n}]").strip()
            for n, sentence in enumerate(sentences)
        ]
        path = _path(image, "filename", where)
        # The file of COCO names the folder of each image, those of Flickr do not.
        names = [f"{_path(image, 'filepath', where)}/{path}", path] if "filepath" in image else [path]
        id = _integer(image, "cocoid", where) if "cocoid" in image else number
        images.append(CaptionedImage(id, names, [caption for caption in captions if caption]))
    listing = ", ".join(f"{excerpt(split)} ({n:,})" for split, n in numbers.most_common(20))
    if splits is None:
        raise DocumentError(
            f"{name}: name the splits to read, such as split: [train, restval]; splits: {listing}"
        )
    for split in splits:
        if split not in numbers:
            raise DocumentError(f"{name}: unknown split '{excerpt(split)}'; {did_you_mean(split, numbers)}")
    return images


def _narratives(file: BinaryIO, record: Any, name: str) -> Iterator[CaptionedImage]:
    line = 1
    while True:
        where = f"{name}:{line}"
        text = _string(record, "image_id", where) if isinstance(record.get("image_id"), str) else ""
        id = int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else None
        id = _integer(record, "image_id", where) if id is None else id
        split = record.get("dataset_id", "")
        split = split.removeprefix("mscoco_") if isinstance(split, str) else ""
        if split not in ("", "train2017", "val2017"):
            raise DocumentError(
                f"{where}: dataset_id: expected mscoco_train2017 or mscoco_val2017, got {describe_value(split)}"
            )
        caption = _string(record, "caption", where).strip()
        yield CaptionedImage(id, [split or "train2017"], [caption] if caption else [])
        data = b"\n"
        while data and not data.strip():
            data, line = file.readline(MOST_BYTES + 1), line + 1
        if not data:
            return
        record = _parsed(data, name, line)
        if not isinstance(record, dict):
            raise DocumentError(f"{name}:{line}: expected a record {{...}}, got {describe_value(record)}")


def _first_value(line: bytes) -> Any:
    """Return the JSON value in the first line of a file, or None if it goes on in the next line or is damaged."""
    try:
        return json.loads(line) if len(line) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        return None


def _parsed(data: bytes, name: str, line: int | None = None) -> Any:
    where = name if line is None else f"{name}:{line}"
    if len(data) > MOST_BYTES:
        raise DocumentError(f"{where}: expected at most {MOST_BYTES:,} bytes, got more")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        place = (
            f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        )
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DocumentError(f"{where}: invalid JSON: {excerpt(reason)}{place}") from error


def _value(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict):
        raise DocumentError(f"{where}: expected a record {{...}}, got {describe_value(record)}")
    if key not in record:
        raise DocumentError(f"{where}: {missing_key(record, key)}")
    return record[key]


def _integer(record: Any, key: str, where: str) -> int:
    value = _value(record, key, where)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**MOST_DIGITS:
        return value
    raise DocumentError(
        f"{where}: {key}: expected an integer of at most {count(MOST_DIGITS, 'digit')}, got {describe_value(value)}"
    )


def _string(record: Any, key: str, where: str) -> str:
    value = _value(record, key, where)
    if isinstance(value, str):
        return value
    raise DocumentError(f"{where}: {key}: expected a string, got {describe_value(value)}")


def _path(record: Any, key: str, where: str) -> str:
    """Return a path from the folder of images, which it may not leave."""
    value = _string(record, key, where)
    if _is_inside(value):
        return value
    raise DocumentError(
        f"{where}: {key}: expected the name of a file in the folder of images, got {describe_value(value)}"
    )


def _is_inside(path: str) -> bool:
    """Return True if a path does not lead out of the folder it starts from, on any system."""
    parts = path.replace("\\", "/").split("/")
    is_absolute = not parts[0] or ":" in parts[0]
    return "\0" not in path and not is_absolute and ".." not in parts
