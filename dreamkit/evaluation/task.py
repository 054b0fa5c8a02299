"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Task(ABC):
    """A measurement that `dreamkit` runs by name, such as `digits-demo`."""

    @abstractmethod
    def run(self, out: Path, *, seed: int = 0) -> Mapping[str, Any]:
        """Runs in the folder `out`, writes its files there, and returns its figures.

        Raises:
            TrainingError: a figure the task promises was missed.
        """
