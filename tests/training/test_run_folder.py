"""The folder of a run: one training writes it, with one process or two."""

from __future__ import annotations

from pathlib import Path

import pytest

import layouts
import runs
from dreamkit.errors import OutputError
from dreamkit.storage.locks import exclusive
from processes import run_in_two

SCRIPT = """
import sys
import time
from pathlib import Path
import torch.distributed as dist
from dreamkit.distributed import is_main
from dreamkit.errors import OutputError
from dreamkit.storage.locks import exclusive
from dreamkit.training.run_folder import exclusive_run

out = Path(sys.argv[1])
dist.init_process_group("gloo")
with exclusive_run(out):
    assert [path.name for path in out.parent.iterdir() if path.name != "script.py"] == [".out.lock"]
    dist.barrier()
dist.barrier()
if is_main():
    other = exclusive(out)
    other.__enter__()
dist.barrier()
try:
    with exclusive_run(out):
        raise AssertionError
except OutputError as error:
    assert str(error).startswith(f"{out} is being written by another dreamkit command"), error
dist.barrier()
dist.destroy_process_group()
"""


def test_the_processes_of_one_training_share_a_folder_and_are_refused_together(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run_in_two(str(script), tmp_path / "out")


def test_a_run_that_goes_on_is_neither_resumed_nor_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = layouts.recipe(save_every=1)
    with exclusive(out):
        for resume in (False, True):
            with pytest.raises(OutputError, match=f"^{out} is being written by another dreamkit command"):
                runs.run(out, recipe, resume=resume)
    runs.run(out, recipe)
