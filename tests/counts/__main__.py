"""Rewrite the last section of docs/benchmarks.md.

python tests/counts
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from counts.section import TITLE, section

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"

if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8").partition(TITLE)[0]
    PAGE.write_text(before + section(), encoding="utf-8")
