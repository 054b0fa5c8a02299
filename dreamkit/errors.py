"""What goes wrong, in one tree, so that callers can catch as much or as little as they want.

DreamkitError (ValueError)     anything the user can mend; the command line prints it and exits with 2
├── PluginError                a component is unknown, broken, or given by two distributions
├── RecipeError                one or many `RecipeProblem`s: file, line, key, values, nearest name
├── SourceError                pretrained files that are not where the recipe says
├── DocumentError              a document that cannot be learned from or generated from
├── CheckpointError            a checkpoint that is damaged, too new, or does not fit
├── CacheError                 a cache of latents or features that is damaged, does not fit, or lacks a picture
└── TrainingError              a run that cannot go on, such as a loss that is not finite
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class DreamkitError(ValueError):
    """Base of every error a user can mend."""


class PluginError(DreamkitError):
    """A component that is unknown, broken, or given twice."""


class ConfigError(DreamkitError):
    """What a part refuses of its recipe section, in `problems`: messages by key.

    A key is relative to the section and dotted, such as `image_size` or `config.unet.norm_num_groups`; an empty one
    means the section as a whole.
    """

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("\n".join(f"{key}: {said}" if key else said for key, said in self.problems.items()))


class SourceError(ConfigError):
    """Pretrained files that were looked for and not found; `key` is the setting that names them."""

    def __init__(self, message: str, key: str = "pretrained") -> None:
        super().__init__({key: message})
        self.args = (message,)


class DocumentError(DreamkitError):
    """A document that cannot be turned into a sequence."""


class CheckpointError(DreamkitError):
    """A checkpoint folder that cannot be written, read or trusted."""


class CacheError(DreamkitError):
    """A cache of latents or features that cannot be written, read or trusted."""


class TrainingError(DreamkitError):
    """A training run that cannot go on."""


@dataclass(frozen=True)
class RecipeProblem:
    """One thing wrong with a recipe.

    `where` is `file:line` or `command line`, `key` the dotted key path, `message` says what was found, what was
    wanted and what to change.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.message}"


class RecipeError(DreamkitError):
    """All the problems of a recipe at once, in `problems`."""

    def __init__(self, problems: Sequence[RecipeProblem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__(
            "\n".join([f"the recipe has {count}:", *(f"  {problem}" for problem in self.problems)])
        )


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: the nearest of `names`, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(known)}" if known else "none are known"


def article(word: str) -> str:
    """The indefinite article before a word or the name of a class."""
    return "an" if word.lstrip("_")[:1].lower() in tuple("aeiou") else "a"


def with_article(kind: str) -> str:
    """A part's kind in a sentence: `image_decoder` is an image decoder."""
    return f"{article(kind)} {kind.replace('_', ' ')}"
