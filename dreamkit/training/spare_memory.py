"""The memory of this machine that a copy of the training state may take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dreamkit.distributed import local_processes

MEMINFO: Final = Path("/proc/meminfo")  # of Linux
GROUP: Final = Path("/proc/self/cgroup")  # the control group of this process
GROUPS: Final = Path("/sys/fs/cgroup")  # all groups, with their limits, as version 2 mounts them
_SHARE: Final = 2  # the copy takes at most one of so many parts: the data workers need some, too


def has_room(size: int) -> bool:
    """Return True if each process of this machine may take `size` bytes; False where this is unknown."""
    machine = _of_machine()
    if machine is None:
        return False
    available = min([machine, *_of_groups()])
    return size * local_processes() <= available // _SHARE


def _of_machine() -> int | None:
    """Return the bytes that new processes can take without swapping."""
    try:
        lines = MEMINFO.read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None


def _of_groups() -> list[int]:
    """Return the bytes up to each limit of a container or a job of a cluster that this process is in."""
    try:
        names = [line[3:] for line in GROUP.read_text().splitlines() if line.startswith("0::/")]
    except OSError:
        return []
    folders = [GROUPS.joinpath(*Path(name).parts[1:]) for name in names]
    every = {GROUPS, *folders, *(parent for folder in folders for parent in folder.parents)}
    return [left for folder in every if (left := _of_group(folder)) is not None]


def _of_group(folder: Path) -> int | None:
    """Return the bytes up to the limit of a group; None if it has none. It can drop what it read from files."""
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit - used + {name: int(value) for name, value in lines}.get("inactive_file", 0)
    except (OSError, ValueError):
        return None
