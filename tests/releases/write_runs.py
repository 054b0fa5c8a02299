"""Write the losses that today's dreamkit computes with the seeded runs of every release.

python tests/releases/write_runs.py

A release has the losses that it computed itself. Run this only after a deliberate change of the order of documents or
of their random numbers, which changes these losses.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from releases.using import RELEASES, RUNS, copy_release, dreamkit as command, install_packages, read_log


def runs_of(release: Path, scratch: Path) -> dict[str, Any]:
    """Return the logs of the runs of a release, by the names in its `expected.json`; "resumed" is the stopped run."""
    folder = copy_release(release, scratch / "release")
    command("train", folder / "run.yaml", "--out", scratch / "run")
    command("train", folder / "run.yaml", "--resume", "--out", folder / "run")
    command("cache", folder / "run.yaml", "--out", folder / "cache", "--overwrite")
    cached = f"train.cache={folder / 'cache'}"
    command("train", folder / "run.yaml", cached, "--out", scratch / "cached")
    sys.path.insert(0, str(install_packages(release, scratch / "packages")))
    command("train", "shapes/five", f"init={folder / 'parts'}", "--out", scratch / "five")
    logs = {"run": scratch / "run", "resumed": folder / "run", "cache": scratch / "cached"}
    return {name: read_log(out) for name, out in (logs | {"five": scratch / "five"}).items()}


def main() -> None:
    runs = {}
    for release in RELEASES:
        with tempfile.TemporaryDirectory() as scratch:
            runs[release.name] = runs_of(release, Path(scratch))
    RUNS.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
