"""Try every combination of parts in one process, and print the page of results.

    python tests/product > docs/parts.md
    python tests/product --state FILE       # the same, but resumes an interrupted run

The exit code is 1 if a combination fails.
"""

from __future__ import annotations

import argparse
import gc
import json
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
from product.parts import Combination, every, parts
from product.table import page
from product.trial import trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/product", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--state", type=Path, help="a file of the combinations that passed, which are not tried again"
    )
    state: Path | None = parser.parse_args().state
    registry = Registry.load()
    all_parts = parts(registry)
    results = earlier_results(state)
    bar = tqdm(every(all_parts), unit="combination", smoothing=0, mininterval=2)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of diffusers
        for number, combination in enumerate(bar):
            if combination in results:
                continue
            try:
                trial(combination, all_parts, registry, Path(folder) / "checkpoint")
                results[combination] = ""
            except Exception as error:  # any error is the result of this combination
                results[combination] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                bar.write(f"{combination}: {traceback.format_exc()}", file=sys.stderr)
            if state is not None and not results[combination]:
                with state.open("a") as file:
                    file.write(json.dumps(combination) + "\n")
            if number % 50 == 0:
                gc.collect()
    sys.stdout.write(
        page(all_parts, {combination: results[combination] for combination in every(all_parts)}, registry)
    )
    return 1 if any(results.values()) else 0


def earlier_results(state: Path | None) -> dict[Combination, str]:
    """Return the combinations in the file `state`, which passed before; remove an incomplete last line."""
    if state is None or not state.exists():
        return {}
    lines = [line for line in state.read_text().splitlines(keepends=True) if line.endswith("\n")]
    state.write_text("".join(lines))
    return {Combination(*json.loads(line)): "" for line in lines}


if __name__ == "__main__":
    sys.exit(main())
