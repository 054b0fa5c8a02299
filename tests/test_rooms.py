"""The core's files: their names are unique, and the modules documented to load no torch load none."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import dreamkit

CORE = Path(dreamkit.__file__).parent
SAME_JOB = {"__init__.py", "__main__.py", "op.py", "reference.py", "manifest.py"}  # one name, one job
TEMPLATES = "scaffold/parts"  # files of the packages that `dreamkit new-plugin` writes


def test_no_two_files_share_a_name() -> None:
    places = defaultdict(list)
    for path in CORE.rglob("*.py"):
        place = path.relative_to(CORE)
        if path.name not in SAME_JOB and place.parent.as_posix() != TEMPLATES:
            places[path.name].append(place.as_posix())
    assert len(places) > 100
    assert [paths for paths in places.values() if len(paths) > 1] == []


def test_a_module_documented_to_load_no_torch_loads_none() -> None:
    docs = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in CORE.rglob("*.py")}
    light = [path for path, doc in docs.items() if "oads no torch" in doc]
    modules = [".".join(path.relative_to(CORE.parent).with_suffix("").parts) for path in light]
    assert "dreamkit.checkpoints.manifest" in modules and "dreamkit.cache.manifest" in modules
    code = f"import sys, {', '.join(modules)}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
