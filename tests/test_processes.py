"""Two processes that tests start: only a crash inside gloo is tried again, with a warning."""

import warnings
from pathlib import Path

import pytest

from processes import crashed_in_gloo, run_in_two

SCRIPT = """
import os, sys, threading, time
from pathlib import Path
import torch.distributed as dist
dist.init_process_group("gloo")
folder = Path(sys.argv[1])
attempts = folder.with_name("attempts")
is_first = dist.get_rank() == 0
if is_first:
    folder.mkdir()
    with attempts.open("a") as file:
        file.write("attempt\\n")
dist.barrier()
if is_first and len(attempts.read_text().splitlines()) == 1:
    threading.Timer(0.5, os.abort).start()
    {wait}
elif not is_first:
    time.sleep(2)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("wait", "attempts"), [("dist.barrier()", 2), ("time.sleep(10)", 1)], ids=["in gloo", "elsewhere"]
)
def test_only_a_crash_inside_gloo_is_tried_again(wait: str, attempts: int, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{wait}", wait))
    if attempts == 2:
        with warnings.catch_warnings(record=True) as caught:  # under the filters of pyproject.toml
            run_in_two(str(script), tmp_path / "out")
        assert "Fatal Python error: Aborted" in str(caught[0].message)
    else:
        with pytest.raises(AssertionError, match="Fatal Python error: Aborted"):
            run_in_two(str(script), tmp_path / "out")
    assert (tmp_path / "attempts").read_text().splitlines() == ["attempt"] * attempts


CRASH = "Fatal Python error: Aborted\n\nThread 0x00007f (most recent call first):\n{frames}\nexitcode : -6 (SIGABRT)\n"
COLLECTIVE = '  File "/site-packages/torch/distributed/_functional_collectives.py", line 138 in wait_tensor'
OPERATOR = '  File "/site-packages/torch/_ops.py", line 1209 in __call__'
KERNEL = '  File "/site-packages/triton/backends/driver.py", line 7 in launch'


@pytest.mark.parametrize(
    ("frames", "is_in_gloo"),
    [
        ([COLLECTIVE], True),
        ([OPERATOR, COLLECTIVE], True),
        ([KERNEL, COLLECTIVE], False),  # in a hook of the library
        ([OPERATOR, KERNEL], False),
        ([COLLECTIVE.replace(" in ", ", in ")], False),  # of the exception that torchrun raises
        (["  <no Python frame>"], False),
    ],
)
def test_the_last_call_of_a_thread_decides_where_a_crash_was(frames: list[str], is_in_gloo: bool) -> None:
    output = CRASH.replace("{frames}", "\n".join(frames))
    assert crashed_in_gloo(output) == is_in_gloo
    assert not crashed_in_gloo(output.replace("(SIGABRT)", ""))
