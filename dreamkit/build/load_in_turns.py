"""Parts whose weights cannot be mapped from their source: one process of a machine builds them at a time.

The first process of a machine writes the weights into a file. Each process maps that file in place of its own copy
before the next one's turn, so at most one process has a whole part in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file

from dreamkit.distributed import gathered, local_processes, local_rank, rank, together
from dreamkit.errors import OutputError
from dreamkit.parts.part import Part
from dreamkit.storage.tensor_files import read_tensors
from dreamkit.storage.writing import writing

Built = TypeVar("Built", bound=Part)


def load_in_turns(build: Callable[[], Built], folder: Path) -> Built:
    """Return what `build` returns, with parameters that all processes of a machine map from one file.

    Every process must call this function, with a `build` of the same result. The file is in `folder`, which it creates
    and removes; on removal, the mapped pages stay.

    Raises:
        OutputError: the file cannot be written.
        Exception: an error of `build`; in the other processes, it has the same message.
    """
    file = folder / f"weights-{rank() - local_rank()}.safetensors"  # a file for each machine
    try:
        for turn in range(max(gathered(local_processes()))):
            with together():
                if turn == local_rank():
                    part = build()
                    if turn == 0:
                        _write(part, file)
                    _map(part, file)
        return part
    finally:
        if local_rank() == 0:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # of another machine that has a file there, or has removed the folder
            folder.rmdir()


def _write(part: Part, file: Path) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in part.named_parameters()}, file)


def _map(part: Part, file: Path) -> None:
    """Replace the values of the parameters by those in the file, and free their memory."""
    stored = read_tensors(file, OutputError)
    for name, parameter in part.named_parameters():
        parameter.data = stored[name]
