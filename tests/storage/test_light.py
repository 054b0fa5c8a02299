"""Imports of storage: few, so that a command that only reads a folder starts at once."""

import subprocess
import sys
from pathlib import Path

import pytest

import dreamkit.storage

FILES = sorted(path.stem for path in Path(dreamkit.storage.__file__).parent.glob("*.py"))
HEAVY = {"torch", "transformers", "huggingface_hub"}


@pytest.mark.parametrize("name", FILES)
def test_no_file_loads_torch_or_transformers(name: str) -> None:
    """Only `sources` loads the client of the hub."""
    heavy = HEAVY - {"huggingface_hub"} if name == "sources" else HEAVY
    code = f"import sys, dreamkit.storage.{name}; print(*{heavy!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
