"""The memory of this machine that a copy of the training state may take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dreamkit.training.sharding import LOCAL_SIZE

MEMINFO: Final = Path("/proc/meminfo")  # of Linux
CGROUP: Final = Path("/sys/fs/cgroup")  # the limits of a container, as version 2 mounts them
_SHARE: Final = 2  # the copy takes at most one of so many parts: the data workers need some, too


def has_room(size: int) -> bool:
    """Return True if each process of this machine may take `size` bytes; False where this is unknown."""
    machine, container = _of_machine(), _of_container()
    if machine is None:
        return False
    available = machine if container is None else min(machine, container)
    return size * int(os.environ.get(LOCAL_SIZE, "1")) <= available // _SHARE


def _of_machine() -> int | None:
    """Return the bytes that new processes can take without swapping."""
    try:
        lines = MEMINFO.read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None


def _of_container() -> int | None:
    """Return the bytes up to the limit of the container; None if it has none. It can drop what it read from files."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + {name: int(value) for name, value in lines}.get("inactive_file", 0)
    except (OSError, ValueError):
        return None
