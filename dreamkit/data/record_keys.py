"""Keys of records that a data set does not read: harmless, unknown (counted and reported), or of media (refused)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from dreamkit.errors import count, did_you_mean, printable


def _words_of(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# A key whose last word is one of these describes the record and has nothing to train on.
HARMLESS = _words_of(
    "id ids uid uuid guid idx index key number source sources origin dataset subset split url urls uri link domain",
    "score scores similarity probability confidence rating width widths height heights size sizes shape resolution",
    "ratio duration fps hash md5 sha sha1 sha256 phash license licence copyright author date time timestamp year",
    "language lang locale model version type kind format mode modality status message exif metadata meta task",
    "category categories topic difficulty",
)
COUNTS = _words_of("num n nb total has is")  # first words of keys such as num_images
# A key about media with one of these as its last word has text about them, or places in them.
DESCRIPTIONS = _words_of(
    "caption captions description descriptions text texts title titles alt tag tags label labels bbox bboxes box boxes",
    "prompt prompts question answer transcript transcripts",
)
MEDIA_STEMS = ("image", "img", "picture", "video", "audio", "media", "multimedia", "pixel", "thumbnail")
MEDIA = _words_of(
    "photo photos photograph photographs figure figures screenshot screenshots frame frames clip clips movie movies",
    "film films animation animations gif gifs sound sounds speech voice voices music wav mp3 mp4 flac webm png jpg",
    "jpeg webp mesh meshes vid vids mov avi mkv ogg m4a aac pic pics tif tiff bmp heic avif svg lidar waveform",
    "waveforms spectrogram spectrograms recording recordings",
)
# A value that ends in one of these names a file of media.
SUFFIXES = tuple(
    sorted(
        f".{suffix}"
        for suffix in _words_of(
            "png jpg jpeg webp gif bmp tif tiff heic avif mp4 mov avi mkv webm mp3 wav flac ogg m4a aac"
        )
    )
)
LINKS = _words_of("url urls uri link")
PLACEHOLDER = re.compile(
    r"<\|?(?:image|img|picture|draw|video|audio|speech|sound)[ _-]?\d*\|?>", re.IGNORECASE
)
MOST_LISTED = 10


class RecordKeys:
    """The keys that a data set reads from a record, with counts of what it does not read.

    Args:
        known: keys that are read.
        slots: placeholders of images that the texts may hold; others are counted, since they are plain text.
        within: name of the list that has the records inside larger ones, such as `conversations`.
    """

    def __init__(self, known: Iterable[str], slots: Iterable[str] = (), within: str = "") -> None:
        self.known = frozenset(known)
        self.slots = frozenset(slots)
        self.within = within
        self.unknown: Counter[str] = Counter()
        self.placeholders: Counter[str] = Counter()

    def problem(self, record: Mapping[str, Any]) -> str | None:
        """Return the error of a key that names media other than those that are read, or None; count unknown keys.

        A key without a value (null, an empty string, list or section) counts as absent.
        """
        for key, value in record.items():
            if key in self.known or value in (None, "", [], {}):
                continue
            # Numbers and booleans name no file.
            is_media = names_media(key) and isinstance(value, str | list | dict)
            if is_media or (not is_harmless(key) and _is_media_file(value)):
                return (
                    f"unknown key '{printable(key)}' names media, which would not be read; rename or remove it; "
                    f"{did_you_mean(key, self.known)}"
                )
            if not is_harmless(key):
                self.unknown[key] += 1
        return None

    def count_placeholders(self, text: str) -> None:
        """Count the placeholders of media in a text that stay plain text."""
        if "<" in text:
            self.placeholders.update({name for name in PLACEHOLDER.findall(text) if name not in self.slots})

    def notes(self) -> list[str]:
        """Return a line about the unknown keys and one about the placeholders, if there are any."""
        within = f" of '{self.within}'" if self.within else ""
        notes = []
        if self.unknown:
            notes.append(f"not read: unknown keys{within}: {_listing(self.unknown, 'record')}")
        if self.placeholders:
            listing = _listing(self.placeholders, "text")
            notes.append(f"placeholders that are trained on as plain text: {listing}")
        return notes


@lru_cache(1024)
def names_media(key: str) -> bool:
    """Return True if a key names files of images, video or sound, such as `video`, `imagePaths` or `audio_url`."""
    words = _words(key)
    if not words or words[0] in COUNTS or words[-1] in DESCRIPTIONS | (HARMLESS - LINKS):
        return False
    return "pointcloud" in "".join(words) or any(w in MEDIA or w.startswith(MEDIA_STEMS) for w in words)


def _is_media_file(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(SUFFIXES)


@lru_cache(1024)
def is_harmless(key: str) -> bool:
    """Return True if a key describes its record and has nothing to train on, such as `id`, `source` or `clip_score`."""
    words = _words(key)
    return bool(words) and (words[-1] in HARMLESS or words[0] in COUNTS)


def _words(key: str) -> list[str]:
    """Return the words of a key in lower case, without numbers at their ends: `imagePath_2` has `image` and `path`."""
    words = re.split(r"[\W_]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    bare = (word if word in HARMLESS | MEDIA else word.rstrip("0123456789") for word in words)
    return [word for word in bare if word]


def _listing(counts: Counter[str], unit: str) -> str:
    listed = [
        f"'{printable(name)}' in {count(f'{n:,}', unit)}" for name, n in counts.most_common(MOST_LISTED)
    ]
    more = len(counts) - len(listed)
    return ", ".join(listed) + (f" and {more:,} more" if more else "")
