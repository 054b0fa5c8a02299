"""Detection of another project's `dreamkit`, a distribution on the package index with a package of that name.

If both are installed, pip overwrites files of one with files of the other. Uninstalling either removes files of both.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from glob import glob

MIXED = (
    "the distribution 'dreamkit', which belongs to another project, is installed beside dreamkit-core and shares its "
    "package; run `pip uninstall dreamkit dreamkit-core`, then install dreamkit-core again"
)


def is_mixed() -> bool:
    """Return True if another project's distribution `dreamkit` with a package of that name is installed.

    Plug-ins tell them apart: this project's distribution had the same name once, but it lists plug-ins.
    """
    # importlib.metadata takes several times as long to import as dreamkit itself.
    return any(
        re.search("^dreamkit/", _read(folder, info, "RECORD"), re.MULTILINE)
        and "[dreamkit.plugins]" not in _read(folder, info, "entry_points.txt")
        for folder in sys.path
        for info in glob("[Dd][Rr][Ee][Aa][Mm][Kk][Ii][Tt]-*.dist-info", root_dir=folder)
    )


def warn_if_mixed() -> None:
    """Warn the importer of the calling module if another project's `dreamkit` is installed too."""
    if is_mixed():
        warnings.warn(MIXED, stacklevel=3)


def _read(*path: str) -> str:
    """Return the text of a file, or "" if it does not exist."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
