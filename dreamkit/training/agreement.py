"""Agreement of the processes of a run: all of them stop before the same step, or none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from dreamkit.distributed import world_size
from dreamkit.errors import TrainingError
from dreamkit.interrupts import Interrupted, pending

Result = TypeVar("Result")


class Agreement:
    """Calls between two steps, whose errors and interrupts stop every process.

    Attributes:
        is_stopping: flag: every process raises now, between two steps. They can save together.
    """

    def __init__(self) -> None:
        self.is_stopping = world_size() == 1
        # The hosts meet, whatever the devices are doing.
        self._hosts = dist.new_group(backend="gloo") if world_size() > 1 else None

    def call(self, function: Callable[[], Result]) -> Result:
        """Return the result of `function`, which every process must call here.

        Raises:
            Interrupted: a signal waits in a process.
            TrainingError: the function raised in another process.
        """
        error: BaseException | None = pending()
        if error is None:
            try:
                result = function()
            except BaseException as raised:
                error = raised
            error = pending() or error  # an interrupt may be the cause
        if self._hosts is not None:
            error = self._shared(self._hosts, error)
        if error is not None:
            raise error
        return result

    def _shared(self, hosts: dist.ProcessGroup, error: BaseException | None) -> BaseException | None:
        failures = torch.tensor(error is not None, dtype=torch.int64)
        dist.all_reduce(failures, group=hosts)
        if not failures:
            return None
        self.is_stopping = True
        own = error.number if isinstance(error, Interrupted) else error and (str(error) or repr(error))
        reasons: list[int | str | None] = [None] * world_size()
        dist.all_gather_object(reasons, own, group=hosts)
        if error is not None:
            return error
        reason = next(reason for reason in reasons if reason is not None)
        return Interrupted(reason) if isinstance(reason, int) else TrainingError(reason)
