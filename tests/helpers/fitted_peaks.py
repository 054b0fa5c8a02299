"""Peak bytes of two processes that train by proposals of `dreamkit plan`, counted as in `alive.py`.

`torchrun` runs this file in each process of `test_proposal.py`: `fitted_peaks.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import alive
from dreamkit.distributed import is_main, join
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry

RECIPES, PEAKS = "recipes.json", "peaks.json"


def main(folder: Path) -> None:
    peaks = {}
    for name, plain in json.loads((folder / RECIPES).read_text()).items():
        join()
        recipe = recipe_from_dict(plain, Registry.load(), where=name)
        peaks[name] = alive.real_peak(recipe, folder / name, alive.ResizedBytes())
    if is_main():
        (folder / PEAKS).write_text(json.dumps(peaks))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
