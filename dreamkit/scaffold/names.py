"""What a new plug-in is called, in all the places where it has a name, and what it may not be called."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import Final

import yaml

from dreamkit.errors import DreamkitError, did_you_mean, with_article
from dreamkit.registry.hookspecs import ENTRY_POINT_GROUP
from dreamkit.registry.plugin import origin
from dreamkit.registry.registry import Registry
from dreamkit.storage.packages import find_spec

PREFIX = "dreamkit-"
LICENSES: Final = ("Apache-2.0", "MIT", "BSD-3-Clause")


@dataclass(frozen=True)
class PartKind:
    """A kind of part to start from.

    `module` is the name of its file and its kind for the registry, `beside` the files it needs. `section` is where a
    recipe's `model` names it, and `more` what else a recipe then has to say.
    """

    module: str
    title: str
    summary: str
    section: str
    beside: tuple[str, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)


KINDS: Final[Mapping[str, PartKind]] = {
    "vision-encoder": PartKind(
        "vision_encoder", "A vision encoder", "a small vision transformer", "vision_encoder", ("weights",)
    ),
    "language-model": PartKind(
        "language_model",
        "A language model",
        "a small transformer that writes bytes",
        "language_model",
        ("blocks", "words", "weights"),
    ),
    "projector": PartKind("projector", "A projector", "averages neighbouring tokens", "visual_projector"),
    "image-decoder": PartKind(
        "image_decoder",
        "An image decoder",
        "a small rectified flow on pixels",
        "image_decoder",
        ("network", "schedulers", "weights"),
        {"generation": "{scheduler: euler}"},
    ),
}


@dataclass(frozen=True)
class Names:
    """`distribution` is what is installed, `package` what is imported, `component` what a recipe writes."""

    distribution: str
    package: str
    component: str
    class_name: str


def kind_called(name: str) -> PartKind:
    """The kind of part of this name.

    Raises:
        DreamkitError: there is none.
    """
    if name not in KINDS:
        raise DreamkitError(f"there is no kind '{name}'; {did_you_mean(name, KINDS)}")
    return KINDS[name]


def names_for(name: str, kind: PartKind, taken: frozenset[str], registry: Registry) -> Names:
    """The names that follow from `name`, that of a distribution. `taken` are words no class may be called.

    Raises:
        DreamkitError: it cannot be a distribution's or a package's name, or something has it already.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise DreamkitError(
            f"'{name}' cannot be the name of a distribution; use letters, digits and '-', such as {PREFIX}wave"
        )
    package, component = name.replace("-", "_"), name.removeprefix(PREFIX)
    if not package.isidentifier() or keyword.iskeyword(package):
        raise DreamkitError(
            f"'{name}' would be the package '{package}', which Python cannot import; use letters, digits and '-', and "
            f"start with a letter, such as {PREFIX}wave"
        )
    _refuse_installed(name, package)
    if not isinstance(yaml.safe_load(component), str):
        raise DreamkitError(
            f"'{name}' would be the component '{component}', which is no text in a recipe; choose another name"
        )
    words = component.replace("-", "_").split("_")
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    if class_name in taken or keyword.iskeyword(class_name) or not class_name.isidentifier():
        class_name = f"Part{class_name}"
    given = registry.components(kind.module).get(component)
    if given is not None:
        raise DreamkitError(
            f"{given.origin} has {with_article(kind.module)} '{component}' already, and two of one name cannot be "
            "told apart; choose another name"
        )
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=component):
        raise DreamkitError(
            f"the plug-in of {origin(entry_point)} is called '{component}' already; choose another name"
        )
    return Names(name, package, component, class_name)


def _refuse_installed(name: str, package: str) -> None:
    """A package that hides another one, or replaces it when it is installed, is not made."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is not None and spec.origin is not None:  # else it is a mere folder, such as one here
        raise DreamkitError(
            f"'{name}' would be the package '{package}', but there is one already ({spec.origin}); choose another name"
        )
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    raise DreamkitError(f"'{name}' is installed already, in version {found.version}; choose another name")
