"""The tree of exceptions.

DreamkitError (ValueError)     any error that the user can fix; the command line prints it and exits with code 2
├── PluginError                an unknown or broken component, or one name in two distributions
├── RecipeError                one or more `RecipeProblem`s, each with file, line and key
├── ConfigError                invalid settings in a part's recipe section
│   └── SourceError            pretrained files that cannot be found
├── DocumentError              a document that cannot be used for training or generation
│   └── StorageError           data that a disk or network fails to deliver, or that changed meanwhile
├── CheckpointError            a checkpoint that is damaged, too new, or does not fit
├── CacheError                 a cache that is damaged, does not fit, or lacks an image
├── OutputError                a file or folder that cannot be written, or that another command is writing
└── TrainingError              a run that cannot continue, such as one with a loss that is not finite
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MOST_SHOWN: Final = 100  # problems of a recipe in its message
_MOST_READ: Final = 100_000  # characters of another library's message, with its values
_LONGEST_TEXT: Final = 1000  # characters that are shown of it
# A value in another library's message: quoted, in brackets with at most two levels of inner ones, or an unbroken word.
# Quotes are paired, so that the text between two values is not one. A quote between letters is an apostrophe.
_VALUE: Final = re.compile(
    r"""
    (?<!\w)[bru]?(?P<quote>['"]) (?: (?!(?P=quote)). | (?<=\w)(?P=quote)(?=\w) )* (?P=quote)(?!\w)
    | \[ (?: [^][] | \[ (?: [^][] | \[ [^][]*+ \] )*+ \] )*+ \]
    | \{ (?: [^{}] | \{ (?: [^{}] | \{ [^{}]*+ \} )*+ \} )*+ \}
    | \S{81,}
    """,
    re.VERBOSE,
)
# Unicode's categories of control characters, surrogates, line and paragraph separators, and formats, which include
# those that reverse the order of the text.
_UNPRINTABLE: Final = ("Cc", "Cs", "Zl", "Zp", "Cf")


class DreamkitError(ValueError):
    """Base class of every error that the user can fix."""


class PluginError(DreamkitError):
    """An unknown or broken component, or one name in two distributions."""


class ConfigError(DreamkitError):
    """Invalid settings in a part's recipe section; `problems` maps keys to messages.

    A key is a dotted path in the section, such as `image_size` or `config.unet.norm_num_groups`. The empty key stands
    for the whole section.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        lines = (f"{printable(key)}: {message}" if key else message for key, message in self.problems.items())
        super().__init__("\n".join(lines))


class SourceError(ConfigError):
    """Pretrained files that cannot be found; `key` is the setting that names them."""

    def __init__(self, message: str, key: str = "pretrained") -> None:
        super().__init__({key: message})
        self.args = (message,)


class DocumentError(DreamkitError):
    """A document that cannot be converted to a sequence."""


class StorageError(DocumentError):
    """Data that a disk or network fails to deliver, or that changed while it was read: no fault of one document."""


class CheckpointError(DreamkitError):
    """A checkpoint folder that cannot be written or read, or whose files have changed."""


class CacheError(DreamkitError):
    """A cache of latents or features that cannot be written or read, or whose files have changed."""


class OutputError(DreamkitError):
    """A file or folder that cannot be written, or that another command is writing."""


class TrainingError(DreamkitError):
    """A training run that cannot continue."""


@dataclass(frozen=True)
class RecipeProblem:
    """One problem of a recipe.

    `where` is `file:line` or `command line`, and `key` a dotted path. `message` has the expected and the actual value,
    and what to change.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{printable(self.where)}: {printable(self.key)}: {self.message}"


class RecipeError(DreamkitError):
    """Every problem of a recipe, in `problems`; its message has the first 100."""

    def __init__(self, problems: Sequence[RecipeProblem]) -> None:
        self.problems = tuple(problems)
        lines = [f"  {problem}" for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"  and {len(self.problems) - MOST_SHOWN} more")
        super().__init__("\n".join([f"the recipe has {count(len(self.problems), 'problem')}:", *lines]))


def with_notes(error: BaseException) -> str:
    """Return the message of an error with the notes that were added to it, such as where a run was saved."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def printable(text: str | Path) -> str:
    """Return a name or path with control characters, line breaks and lone surrogates as escapes such as `\\x1b`.

    A terminal obeys some control characters: text from a file could move its cursor or clear it. A line break in a name
    could begin a line that looks like one of dreamkit.
    """
    return "".join(
        character
        if unicodedata.category(character) not in _UNPRINTABLE
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )


def printable_lines(text: str) -> str:
    """Return a text as `printable` does, with its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def excerpt(text: str, most: int = 80) -> str:
    """Return a value for an error message: at most `most` characters, on one line, without control characters."""
    start = printable(text[: most + 1])
    return start if len(start) <= most else f"{start[: most - 3]}..."


def first_lines(lines: Sequence[str], most: int) -> list[str]:
    """Return the first lines of a list, and the number of the others as one more line."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]


def describe_value(value: object) -> str:
    """Return a value and its type for an error message: "'three' (string)", "true (boolean)", "null".

    At most 80 characters of the value are shown, with control characters as escapes. Of lists only the length is.
    """
    match value:
        case None:
            return "null"
        case bool():
            return f"{str(value).lower()} (boolean)"
        case int():
            digits = str(value) if value.bit_length() < 1000 else f"one of {count(value.bit_length(), 'bit')}"
            return f"{excerpt(digits)} (integer)"
        case float():
            return f"{value} (number)"
        case str():
            return f"'{excerpt(value)}' (string)"
        case list() | tuple():
            return f"a list of length {len(value)}"
        case Mapping():
            return "a section"
        case _:
            return f"{excerpt(repr(value))} ({type(value).__name__})"


def describe_error(error: BaseException) -> str:
    """Return the type and message of another library's error, on one line and with at most 300 characters.

    Such a message may quote a value of any length, so that brackets, quotes and words are shortened to 80 characters,
    but for paths. That of an `OSError` is whole, because it names a file. For an error of dreamkit, return its message.
    Notes follow an error of too little memory, which seldom has a message: they name what was read.
    """
    if isinstance(error, DreamkitError):
        return str(error)
    text = str(error)
    if isinstance(error, MemoryError):
        text = "; ".join([text or "too little memory", *getattr(error, "__notes__", ())])
    text = " ".join(text.split()) if isinstance(error, OSError) else excerpt(library_text(text), 300)
    return f"{type(error).__name__}: {text or 'no reason given'}"


def library_text(text: str) -> str:
    """Return another library's text on one line of at most 1000 characters, with at most 80 of each value in it."""
    return excerpt(_VALUE.sub(_shortened_value, " ".join(text[:_MOST_READ].split())), _LONGEST_TEXT)


def _shortened_value(match: re.Match[str]) -> str:
    value = match[0]
    return value if value.lstrip("'\"`([{<").startswith(("/", "~", ".")) else excerpt(value)


@contextmanager
def library_errors(place: str | Path, key: str = "pretrained") -> Iterator[None]:
    """Raise any error of a library about the files of a source as a SourceError of `key`.

    Libraries check few of the values in a file. A wrong one may raise any error, deep inside a constructor. The message
    has `place`, the file or folder with what could not be made of it, then the library's reason.

    Raises:
        SourceError: any error but those of dreamkit.
    """
    try:
        yield
    except DreamkitError:
        raise
    except Exception as error:
        raise SourceError(f"{printable(place)}: {describe_error(error)}", key) from error


def surrogate_problem(text: str) -> str | None:
    """Return why a text with a lone surrogate is not a text, or None. No file and no tokenizer can hold one.

    Such a text comes from JSON, or from bytes of the command line that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"expected valid characters, got the lone surrogate '{printable(error.object[error.start])}' at position "
            f"{error.start}; remove it, write the whole pair, or encode it in UTF-8"
        )
    return None


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """Return the end of an error message about an unknown `name`: the nearest of `names`, or all of them."""
    known = sorted(names)
    if hint := near_hint(name, known):
        return hint.removeprefix("; ")
    return f"known: {', '.join(map(printable, known))}" if known else "none are known"


def near_hint(name: Any, names: Iterable[str]) -> str:
    """Return the end of an error message that has all `names` already: "; did you mean 'x'?", or nothing."""
    near = difflib.get_close_matches(str(name), sorted(names), n=1, cutoff=0.6)
    return f"; did you mean '{printable(near[0])}'?" if near else ""


def count(number: int | str, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `count(1, "image")` is "1 image", `count("2,000", "batch")` is "2,000 batches".

    `plural` is only needed for several words, such as "images to read".
    """
    if str(number) == "1":
        return f"1 {noun}"
    if not plural:
        if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
            plural = f"{noun[:-1]}ies"
        else:
            plural = noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")
    return f"{number} {plural}"


def article(word: str) -> str:
    """Return the indefinite article for a word or the name of a class."""
    return "an" if word.lstrip("_")[:1].lower() in tuple("aeiou") else "a"


def with_article(kind: str) -> str:
    """Return a kind of part with its article, such as "an image decoder" for `image_decoder`."""
    return f"{article(kind)} {kind.replace('_', ' ')}"
