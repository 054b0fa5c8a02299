"""Imports of a process that infers the specs of parts and builds none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# Modules that a spec does not need, with their submodules: networks, losses, and the core's kernels and model.
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
loaded = []
for kind, name, section in parts:
    cls = registry.get(kind, name)
    if section is not None:
        cls.infer_spec(cls.Config(**section))
    loaded.append([module for module in heavy if module in sys.modules])
print(json.dumps(loaded))
"""
Part = tuple[
    str, str, dict[str, Any] | None
]  # kind, name, and settings whose spec is inferred; None only imports the class


def heavy_imports(parts: list[Part], cache: Path, also: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return the heavy modules that are loaded after each part's spec is inferred; one process infers all specs.

    `cache` is an empty folder for the hub's models, and the process is offline. `also` are more heavy modules.
    """
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([parts, [*HEAVY, *also]])],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-8000:]
    loaded = json.loads(process.stdout.splitlines()[-1])
    return {
        f"{kind} {name} {section}": modules
        for (kind, name, section), modules in zip(parts, loaded, strict=True)
        if modules
    }
