"""Another project's `dreamkit` beside this one: the package index has a distribution of that name, with such a package.

pip writes the files of one over those of the other, and takes files of both away with either.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from glob import glob

MIXED = (
    "the package 'dreamkit' is not dreamkit-core's alone: the distribution 'dreamkit', on the package index another "
    "project's, is installed beside it; run `pip uninstall dreamkit dreamkit-core`, then install dreamkit-core again"
)


def is_mixed() -> bool:
    """Return True if another project's distribution `dreamkit` has a package of that name.

    Its files decide: this project's distribution once had the same name and version, but lists plug-ins.
    """
    # importlib.metadata would find the same, but takes several times as long to import as dreamkit itself.
    return any(
        re.search("^dreamkit/", _read(folder, info, "RECORD"), re.MULTILINE)
        and "[dreamkit.plugins]" not in _read(folder, info, "entry_points.txt")
        for folder in sys.path
        for info in glob("[Dd][Rr][Ee][Aa][Mm][Kk][Ii][Tt]-*.dist-info", root_dir=folder)
    )


def warn_if_mixed() -> None:
    """Warn whoever imports the calling module if another project's `dreamkit` is installed too."""
    if is_mixed():
        warnings.warn(MIXED, stacklevel=3)


def _read(*path: str) -> str:
    """Return the text of a file, "" if there is none."""
    try:
        with open(os.path.join(*path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
