"""The start of the `dreamkit` command, and the check that the package `dreamkit` is this project's alone.

The package index has another project's distribution `dreamkit`, whose package has that name too. This module is outside
the package, so that it runs where the other project's `dreamkit/__init__.py` has replaced this one's.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from glob import glob
from importlib.util import find_spec

MIXED = (
    "the package 'dreamkit' is not dreamkit-core's alone: the distribution 'dreamkit', on the package index another "
    "project's, is or was installed beside it; run `pip uninstall dreamkit dreamkit-core`, then install dreamkit-core "
    "again"
)


def main() -> None:
    """Run the `dreamkit` command; exit with 2 where importing the package would run another project's code."""
    replaced = _is_replaced()
    if replaced or _is_mixed():
        print(f"dreamkit: {MIXED}", file=sys.stderr)
    if replaced:
        sys.exit(2)
    warnings.filterwarnings("ignore", re.escape(MIXED))  # already printed
    from dreamkit.cli import main

    main()


def warn_if_mixed() -> None:
    """Warn whoever imports the calling module if another project's `dreamkit` is installed too."""
    if _is_mixed():
        warnings.warn(MIXED, stacklevel=3)


def _is_mixed() -> bool:
    """Return True if another project's distribution `dreamkit` has a package of that name.

    Its files decide: this project's distribution once had the same name and version, but lists plug-ins.
    """
    # importlib.metadata would find the same, but takes several times as long to import as dreamkit itself.
    return any(
        re.search("^dreamkit/", _read(folder, info, "RECORD"), re.MULTILINE)
        and "[dreamkit.plugins]" not in _read(folder, info, "entry_points.txt")
        for folder in sys.path
        for info in glob("dreamkit-*.dist-info", root_dir=folder)
    )


def _is_replaced() -> bool:
    """Return True if the package that an import would find is not this project's, whose `__init__` uses this module."""
    spec = find_spec("dreamkit")
    return spec is None or __name__ not in _read(spec.origin or "")


def _read(*path: str) -> str:
    """Return the text of a file, "" if there is none."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
