"""The place of an error in the files of a part's author, as `path:line`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

KIT = Path(__file__).parent


def raised_at(error: BaseException, module: str) -> str | None:
    """Return the author's innermost line in the traceback of `error`, or of its nearest cause with such a line.

    `module` is that of the part. Its whole package is the author's, and so is every file that is not installed.
    """
    package = module.partition(".")[0]
    for each in _causes(error):
        places = [
            (frame.f_code.co_filename, line)
            for frame, line in walk_tb(each.__traceback__)
            if _is_authors(frame.f_globals.get("__name__") or "", frame.f_code.co_filename, package)
        ]
        if places:
            return _shown(*places[-1])
    return None


def defined_at(definition: Callable[..., Any]) -> str | None:
    """Return the first line of a class or function, or None if its source is unknown."""
    try:
        path, line = inspect.getsourcefile(definition), inspect.getsourcelines(definition)[1]
    except (OSError, TypeError):
        return None
    return None if path is None else _shown(path, line)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, and so on; an error may be its own cause."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is each for each in seen):
        yield cause
        seen.append(cause)
        cause = cause.__cause__


def _is_authors(module: str, path: str, package: str) -> bool:
    """Return True for code of the part's package, or of a file outside libraries, the kit and dreamkit."""
    if path.startswith("<") or Path(path).is_relative_to(KIT):  # "<string>" is a dataclass's __init__
        return False
    top = module.partition(".")[0]
    if top in (package, "dreamkit"):  # dreamkit's files count only for dreamkit's own parts
        return top == package
    return top not in sys.stdlib_module_names and not any(
        Path(path).is_relative_to(folder) for folder in _installed()
    )


@cache
def _installed() -> list[Path]:
    """Return the folders of sys.path with installed distributions; editable installs lie elsewhere."""
    return [Path(folder) for folder in sys.path if folder and any(Path(folder).glob("*.dist-info"))]


def _shown(path: str, line: int) -> str:
    """Return `path:line`, relative to the working folder if the file is in it."""
    inside = Path(path).is_relative_to(Path.cwd())
    return f"{Path(path).relative_to(Path.cwd()) if inside else path}:{line}"
