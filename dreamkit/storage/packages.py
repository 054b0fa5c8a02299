"""Modules and folders of installed packages, found without importing them."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path, PurePosixPath


def find_spec(module: str) -> ModuleSpec:
    """Return the spec of a module without importing it or the packages around it.

    Raises:
        ModuleNotFoundError: no such module.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module created in memory
        spec = None
    name = top
    for part in rest:
        name += f".{part}"
        if spec is None or spec.submodule_search_locations is None:
            break
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.name != module:
        raise ModuleNotFoundError(f"no module '{module}'")
    return spec


def package_folder(package: str, folder: str) -> Path:
    """Return the absolute path of a `folder` inside an installed package, without importing the package.

    Raises:
        LookupError: no such package, or no such folder inside it.
    """
    try:
        roots = find_spec(package).submodule_search_locations or ()
    except ModuleNotFoundError:
        roots = ()
    if not roots:
        raise LookupError(f"no installed package '{package}'; install it or correct the name")
    inside = PurePosixPath(folder)
    if inside.is_absolute() or ".." in inside.parts:
        raise LookupError(f"'{folder}' leads out of package '{package}'; name a folder inside it")
    places = [os.path.abspath(os.path.join(root, folder)) for root in roots]
    for place in places:
        if os.path.isdir(place):
            return Path(place)
    raise LookupError(f"package '{package}' is installed, but there is no folder {' or '.join(places)}")
