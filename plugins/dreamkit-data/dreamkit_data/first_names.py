"""Names of texts and numbers in the first samples of archives, for notes about settings that fit no sample."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from dreamkit import printable

FIRST: Final = 64  # samples of a file
MOST_NAMES: Final = 50  # of a file
LONGEST_NAME: Final = 80  # characters; longer ones are no keys of metadata


class FirstNames:
    """Names in the first samples of a file.

    Attributes:
        samples: number of these samples.
        texts: places of texts: suffixes of members, and `json:KEY`.
        numbers: keys of numbers in `.json`.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.texts: dict[str, None] = {}
        self.numbers: dict[str, None] = {}

    def add(self, suffixes: Iterable[str], record: Mapping[str, Any]) -> None:
        """Add the names of a sample, from its members but the image and `.json`, and its record; later ones are passed.

        A name with null counts for neither texts nor numbers.
        """
        if self.samples == FIRST:
            return
        self.samples += 1
        _add(self.texts, suffixes)
        _add(self.texts, (f"json:{key}" for key, value in record.items() if isinstance(value, str)))
        numbers = (int, float)
        _add(self.numbers, (key for key, value in record.items() if type(value) in numbers))

    def facts(self) -> dict[str, Any]:
        """Return the names as facts of an index."""
        return {"names": {"samples": self.samples, "texts": list(self.texts), "numbers": list(self.numbers)}}


def unknown_lines(
    facts: Iterable[Mapping[str, Any]], captions: Iterable[str], filters: Iterable[str]
) -> list[str]:
    """Return a line for each place of captions and each key of filters that the first samples of no file have.

    `facts` are those of the files.
    """
    names = [each["names"] for each in facts]
    if not any(each["samples"] for each in names):
        return []
    texts = dict.fromkeys(name for each in names for name in each["texts"])
    numbers = dict.fromkeys(name for each in names for name in each["numbers"])
    return [
        *(f"no caption '{printable(name)}' {_names(name, texts)}" for name in captions if name not in texts),
        *(
            f"no number '{printable(name)}' {_names(name, numbers)}"
            for name in filters
            if name not in numbers
        ),
    ]


def _add(names: dict[str, None], added: Iterable[str]) -> None:
    for name in added:
        if len(names) < MOST_NAMES and len(name) <= LONGEST_NAME:
            names.setdefault(name)


def _names(name: str, names: Iterable[str]) -> str:
    """Return the end of a line: the names that there are, and the one that is nearest to `name`."""
    own = {each.removeprefix("json:"): each for each in names}  # else "json:" alone would make two names near
    near = difflib.get_close_matches(name.removeprefix("json:"), own, n=1, cutoff=0.6)
    end = f"; did you mean '{printable(own[near[0]])}'?" if near else ""
    return f"in the first samples, which have {', '.join(map(printable, names)) or 'none'}{end}"
