"""MMC4's records: their form, the images that are read, and their places among the texts.

The form is that of https://github.com/allenai/mmc4. Beyond it, a text may be a part with `train_on`, and an image may
have `draw`, `read` and `train_on`, as in the records of `interleaved`. A record with an `instruction`, as in DreamLLM's
data of stage III, is a conversation: the user's instruction and the assistant's document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from dreamkit import Document, Image, Text, describe_value, excerpt
from dreamkit_data.member_records import missing_key

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FLAGS: Final = ("draw", "read", "train_on")
LONGEST_NAME: Final = 255  # bytes, in most file systems
MOST_ITEMS: Final = 100_000  # texts or images of a record
Place: TypeAlias = Literal["before", "after"]


@dataclass(frozen=True)
class Selection:
    """The images of a record that are read.

    Attributes:
        min_similarity: least `matched_sim`; images without one are left out. None: any.
        max_images: number of images in a document; those with the greatest `matched_sim` stay. None: any.
    """

    min_similarity: float | None = None
    max_images: int | None = None

    def numbers(self, record: Mapping[str, Any], exists: Callable[[str], bool]) -> list[int]:
        """Return the numbers of the images in `image_info`, in its order; `exists` takes the name of an image."""
        similarities = [info.get("matched_sim") for info in record["image_info"]]
        numbers = [
            number
            for number, (info, similarity) in enumerate(zip(record["image_info"], similarities, strict=True))
            if (self.min_similarity is None or (similarity is not None and similarity >= self.min_similarity))
            and exists(info["image_name"])
        ]
        if self.max_images is not None and len(numbers) > self.max_images:
            numbers.sort(
                key=lambda n: -math.inf if similarities[n] is None else similarities[n], reverse=True
            )
            numbers = sorted(numbers[: self.max_images])
        return numbers

    def empty_reason(self, record: Mapping[str, Any], exists: Callable[[str], bool]) -> str:
        """Return why `numbers` is empty, for "1 document" and this reason."""
        if self.min_similarity is not None and any(
            exists(info["image_name"]) for info in record["image_info"]
        ):
            return f"without an image whose matched_sim is at least min_similarity ({self.min_similarity:g})"
        return "without an image"


def record_problem(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the form of a record, or None."""
    for key in ("text_list", "image_info"):
        if key not in record:
            return missing_key(record, key)
        value = record[key]
        if not isinstance(value, list):
            return f"{key}: expected a list, got {describe_value(value)}"
        if len(value) > MOST_ITEMS:
            return f"{key}: expected at most {MOST_ITEMS:,} items, got {len(value):,}"
    texts = record["text_list"]
    for number, text in enumerate(texts):
        if problem := _text_problem(text):
            return f"text_list[{number}]: {problem}"
    instruction = record.get("instruction")
    if instruction is not None and (problem := _text_problem(instruction, blank=False)):
        return f"instruction: {problem}"
    for number, info in enumerate(record["image_info"]):
        if problem := _image_problem(info, len(texts)):
            return f"image_info[{number}]{problem}"
    return None


def _text_problem(item: Any, *, blank: bool = True) -> str | None:
    text = item
    if isinstance(item, dict) and blank:
        text = item.get("text")
        if not isinstance(item.get("train_on", True), bool):
            return f"train_on: expected true or false, got {describe_value(item['train_on'])}"
    if not isinstance(text, str) or not (blank or text.strip()):
        return f"expected a text, got {describe_value(text)}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"expected a text, got '{excerpt(text)}', which has half of a surrogate pair"
    return None


def _image_problem(info: Any, texts: int) -> str | None:
    if not isinstance(info, dict):
        return f": expected a section, got {describe_value(info)}"
    for key in ("image_name", "matched_text_index"):
        if key not in info:
            return f": {missing_key(info, key)}"
    if problem := name_problem(info["image_name"]):
        return f".image_name: {problem}"
    index, similarity = info["matched_text_index"], info.get("matched_sim")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < texts:
        return f".matched_text_index: expected a number from 0 to {texts - 1}, got {describe_value(index)}"
    if similarity is not None and (isinstance(similarity, bool) or not isinstance(similarity, int | float)):
        return f".matched_sim: expected a number, got {describe_value(similarity)}"
    for flag in FLAGS:
        if not isinstance(info.get(flag, True), bool):
            return f".{flag}: expected true or false, got {describe_value(info[flag])}"
    if not (info.get("draw", True) or info.get("read", True)):
        return ": draw and read are false, so the model would not see the image; set one to true"
    return None


def with_remedy(problem: str, noun: str) -> str:
    """Return a problem of a record with what to do: to correct the key that it names, if it names one."""
    return problem if problem.endswith("?") else f"{problem}; correct or remove the {noun}"


def name_problem(name: Any) -> str | None:
    """Return why a value is not the bare name of an image, or None."""
    if not isinstance(name, str) or not name.strip("."):
        return f"expected the name of an image, got {describe_value(name)}"
    if "/" in name or "\\" in name or "\0" in name:
        return f"expected a name without a folder, got {describe_value(name)}"
    try:
        is_long = len(name.encode()) > LONGEST_NAME
    except UnicodeEncodeError:
        return f"expected a name in Unicode, got {describe_value(name)}"
    return f"expected at most {LONGEST_NAME} bytes in a name, got {describe_value(name)}" if is_long else None


def mmc4_document(
    record: Mapping[str, Any], pictures: Mapping[int, Picture], *, draw: bool, place: Place, name: str
) -> Document:
    """Return the document of a record.

    Args:
        record: the record, without problems.
        pictures: images by their numbers in `image_info`.
        draw: train the model to draw images without `draw`, which it then reads back; else it reads them.
        place: images stand `before` or `after` the text of their `matched_text_index`, in the order of `image_info`.
        name: name of the document.
    """
    at: dict[int, list[Image]] = {}
    for number, picture in pictures.items():
        info = record["image_info"][number]
        flags = {"draw": draw, **{flag: info[flag] for flag in FLAGS if flag in info}}
        if not (flags["draw"] or flags.get("read", True)):
            flags["draw"] = True
        at.setdefault(info["matched_text_index"], []).append(Image(picture, **flags))
    segments: list[Text | Image] = []
    for number, text in enumerate(_texts(record["text_list"])):
        images = at.get(number, [])
        if place == "before":
            segments += images
        if text.text:
            segments.append(text)
        if place == "after":
            segments += images
    joined = tuple(_joined(segments))
    instruction = record.get("instruction")
    if instruction is None:
        return Document(joined, name)
    answer = (replace(segment, role="assistant") for segment in joined)
    return Document((Text(instruction.strip(), role="user"), *answer), name)


def _texts(items: Sequence[Any]) -> Iterator[Text]:
    for item in items:
        if isinstance(item, dict):
            yield Text(item["text"].strip(), train_on=item.get("train_on", True))
        else:
            yield Text(item.strip())


def _joined(segments: Sequence[Text | Image]) -> Iterator[Text | Image]:
    """Yield the segments with neighbouring texts as one."""
    texts: list[Text] = []
    for segment in segments:
        if texts and not (isinstance(segment, Text) and segment.train_on == texts[0].train_on):
            yield Text(" ".join(text.text for text in texts), train_on=texts[0].train_on)
            texts = []
        if isinstance(segment, Text):
            texts.append(segment)
        else:
            yield segment
    if texts:
        yield Text(" ".join(text.text for text in texts), train_on=texts[0].train_on)
