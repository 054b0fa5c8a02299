"""Tries every combination of parts in one process, and prints the page of results.

    python tests/product > docs/parts.md

Exits with 1 where a combination fails.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from tqdm import tqdm

from dreamkit.registry.registry import Registry
from product.parts import every, parts
from product.table import page
from product.trial import trial


def main() -> int:
    registry = Registry.load()
    found = parts(registry)
    results = {}
    bar = tqdm(every(found), unit="combination", smoothing=0, mininterval=2)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of diffusers
        for number, combination in enumerate(bar):
            try:
                trial(combination, found, registry, Path(folder) / "checkpoint")
                results[combination] = ""
            except Exception as error:  # whatever a part does wrong is its result
                results[combination] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                bar.write(f"{combination}: {traceback.format_exc()}", file=sys.stderr)
            if number % 50 == 0:
                gc.collect()
    sys.stdout.write(page(found, results, registry))
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
