"""The folder of a run, which one training writes at a time, with one or more processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from dreamkit.distributed import is_main, world_size
from dreamkit.errors import OutputError
from dreamkit.storage.locks import exclusive
from dreamkit.training.resume_points import restore_resume_points


@contextmanager
def exclusive_run(out: Path) -> Iterator[None]:
    """Lock the folder of a run for all processes of this training. Every process must enter the block.

    Raises:
        OutputError: another command is writing `out`, or it cannot be written. All processes raise it.
    """
    with ExitStack() as stack:
        problem = None
        if is_main():
            try:
                stack.enter_context(exclusive(out))
                restore_resume_points(out)  # before any process looks for them
            except OutputError as error:
                if world_size() == 1:
                    raise
                problem = str(error)
        if world_size() > 1:
            problems: list[str | None] = [None] * world_size()
            dist.all_gather_object(problems, problem)
            problem = problems[0]
        if problem is not None:
            raise OutputError(problem)
        yield
