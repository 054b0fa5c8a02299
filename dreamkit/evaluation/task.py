"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Task(ABC):
    """An evaluation that `dreamkit` runs by name, such as `digits-demo`."""

    @abstractmethod
    def run(self, out: Path, *, seed: int = 0) -> Mapping[str, Any]:
        """Run the task with files in the folder `out`; return its results by name, such as accuracies in [0, 1].

        Raises:
            TrainingError: a result is below the task's target.
        """
