"""The core's files: each is found by its name alone, and those that say so load no torch."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import dreamkit

CORE = Path(dreamkit.__file__).parent
SAME_JOB = {"__init__.py", "__main__.py", "op.py", "reference.py", "manifest.py"}  # for different things
WRITTEN = "scaffold/parts"  # the files of the packages that it writes


def test_no_two_files_share_a_name() -> None:
    places = defaultdict(list)
    for path in CORE.rglob("*.py"):
        place = path.relative_to(CORE)
        if path.name not in SAME_JOB and place.parent.as_posix() != WRITTEN:
            places[path.name].append(place.as_posix())
    assert len(places) > 100
    assert [paths for paths in places.values() if len(paths) > 1] == []


def test_a_file_that_says_so_loads_no_torch() -> None:
    docs = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in CORE.rglob("*.py")}
    light = [path for path, doc in docs.items() if "oads no torch" in doc]
    modules = [".".join(path.relative_to(CORE.parent).with_suffix("").parts) for path in light]
    assert "dreamkit.checkpoints.manifest" in modules and "dreamkit.cache.manifest" in modules
    code = f"import sys, {', '.join(modules)}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
