"""Imports of a process that makes no part, but tells the specs of some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What a spec has no use for, submodules included: networks and losses, and the core's kernels and model.
HEAVY = (
    "transformers.modeling_utils",
    "transformers.loss",
    "diffusers.models",
    "peft",
    "dreamkit.kernels",
    "dreamkit.model.model",
)
SCRIPT = """
import json, sys
from dreamkit import Registry
parts, heavy = json.loads(sys.argv[1])
registry = Registry.load()
found = []
for kind, name, section in parts:
    cls = registry.get(kind, name)
    if section is not None:
        cls.infer_spec(cls.Config(**section))
    found.append([module for module in heavy if module in sys.modules])
print(json.dumps(found))
"""
Part = tuple[str, str, dict[str, Any] | None]  # kind, name, and the settings to tell the spec of, if any


def heavy_imports(parts: list[Part], cache: Path, also: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return the parts after whose spec heavy modules are loaded, and these; all specs are told in one process.

    `cache` is an empty folder: the process is offline, and finds no model of the hub. `also` are more such modules.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([parts, [*HEAVY, *also]])],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    loaded = json.loads(done.stdout.splitlines()[-1])
    return {
        f"{kind} {name} {section}": modules
        for (kind, name, section), modules in zip(parts, loaded, strict=True)
        if modules
    }
