"""The kinds of parts and data sets, and the names of a new plug-in: valid, and not in use."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from typing import Final

import yaml

from dreamkit.errors import DreamkitError, with_article
from dreamkit.registry.installed import installed_plugins
from dreamkit.registry.plugin import origin
from dreamkit.registry.registry import Registry
from dreamkit.storage.packages import find_spec

PREFIX = "dreamkit-"
LICENSES: Final = ("Apache-2.0", "MIT", "BSD-3-Clause")


@dataclass(frozen=True)
class PartKind:
    """A kind of part, or a data set, to start from.

    `module` is the name of its file and its kind in the registry; `helpers` are the other files it needs. `section` is
    its key in a recipe's `model`, or `data`. `settings` are the other keys that a recipe with it needs.
    """

    module: str
    title: str
    summary: str
    section: str
    helpers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_part(self) -> bool:
        """True for a part of a model, which a recipe can train."""
        return self.module != "dataset"

    @property
    def has_weights(self) -> bool:
        """True if a recipe names or configures the part's weights."""
        return "weights" in self.helpers


KINDS: Final[Mapping[str, PartKind]] = {
    "vision-encoder": PartKind(
        "vision_encoder", "A vision encoder", "a small vision transformer", "vision_encoder", ("weights",)
    ),
    "language-model": PartKind(
        "language_model",
        "A language model",
        "a small transformer that writes bytes",
        "language_model",
        ("blocks", "cache", "words", "weights"),
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
    "dataset": PartKind("dataset", "A data set", "texts, each beside the image that it describes", "data"),
}


@dataclass(frozen=True)
class Names:
    """The names of a plug-in: `pip install` takes `distribution`, `import` takes `package`, recipes use `component`."""

    distribution: str
    package: str
    component: str
    class_name: str


def names_for(name: str, kind: PartKind, taken: frozenset[str], registry: Registry) -> Names:
    """Return the names of a plug-in with the distribution `name`, with a class name that is not in `taken`.

    Raises:
        DreamkitError: one of the names is invalid or in use.
    """
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise DreamkitError(
            f"expected the name of a distribution, got '{name}'; use letters, digits and '-', such as {PREFIX}wave"
        )
    package, component = name.replace("-", "_"), name.removeprefix(PREFIX)
    if not package.isidentifier() or keyword.iskeyword(package):
        raise DreamkitError(
            f"Python cannot import the package '{package}' of '{name}'; start with a letter, and use letters, digits "
            f"and '-', such as {PREFIX}wave"
        )
    _refuse_installed(name, package)
    if not isinstance(yaml.safe_load(component), str):
        raise DreamkitError(
            f"the component '{component}' of '{name}' is not a string in YAML; choose another name"
        )
    words = component.replace("-", "_").split("_")
    class_name = "".join(word[:1].upper() + word[1:] for word in words)
    if class_name in taken or keyword.iskeyword(class_name) or not class_name.isidentifier():
        class_name = f"Part{class_name}"
    if same := registry.components(kind.module).get(component):
        raise DreamkitError(
            f"{same.origin} already has {with_article(kind.module)} '{component}'; choose another name"
        )
    for entry_point in installed_plugins()[0]:
        if entry_point.name == component:
            raise DreamkitError(
                f"{origin(entry_point)} already has a plug-in '{component}'; choose another name"
            )
    return Names(name, package, component, class_name)


def _refuse_installed(name: str, package: str) -> None:
    """Refuse a package that would hide an installed one, or replace it when installed."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is not None and spec.origin is not None:  # without an origin, it is a plain folder
        raise DreamkitError(
            f"the package '{package}' of '{name}' already exists ({spec.origin}); choose another name"
        )
    try:
        version = distribution(name).version
    except PackageNotFoundError:
        return
    raise DreamkitError(f"'{name}' {version} is already installed; choose another name")
