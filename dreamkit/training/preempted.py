"""The flag in the state of a resume point by which a job script decides to start the run again."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from dreamkit.checkpoints.manifest import Manifest
from dreamkit.storage.folders import atomic_folder, describe_files
from dreamkit.training.resume_state import STATE, STATE_FILE, read_state


def mark_preempted(point: Path, preempted: bool) -> None:
    """Set the flag `preempted` in the state of a resume point, which is replaced as a whole.

    Its other files stay: they become links in the new folder.

    Raises:
        OutputError: the resume point cannot be replaced.
        CheckpointError: it is damaged.
    """
    state, manifest = read_state(point), Manifest.read(point, verify=False)
    if state.preempted == preempted:
        return
    name = f"{STATE}/{STATE_FILE}"
    with atomic_folder(point) as partial:
        for each in manifest.files.keys() - {name}:
            (partial / each).parent.mkdir(parents=True, exist_ok=True)
            _link(point / each, partial / each)
        (partial / STATE).mkdir(exist_ok=True)
        replace(state, preempted=preempted).write(partial / STATE)
        record = describe_files(partial / STATE)[STATE_FILE]
        replace(manifest, files={**manifest.files, name: record}).write(partial)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)
