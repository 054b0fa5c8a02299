"""Agreement of the processes of a run: all of them stop before the same step, or none does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dreamkit.distributed import world_size
from dreamkit.errors import DocumentError, TrainingError
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
        self._hosts: Any = dist.new_group(backend="gloo") if world_size() > 1 else None

    def call(self, function: Callable[[], Result]) -> Result:
        """Return the result of `function`, which every process must call here.

        Raises:
            Interrupted: a signal waits in a process.
            DocumentError, TrainingError: the function raised in another process.
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

    def _shared(self, hosts: Any, error: BaseException | None) -> BaseException | None:
        failures = torch.tensor(error is not None, dtype=torch.int64)
        dist.all_reduce(failures, group=hosts)
        if not failures:
            return None
        self.is_stopping = True
        reasons: list[Any] = [None] * world_size()
        dist.all_gather_object(reasons, _reason(error), group=hosts)
        if error is not None:
            return error
        return next(_error(*reason) for reason in reasons if reason is not None)


def _reason(error: BaseException | None) -> tuple[str, Any] | None:
    """Return an error as plain values for the other processes: not each can be pickled."""
    if error is None:
        return None
    if isinstance(error, Interrupted):
        return "interrupt", error.number
    return "document" if isinstance(error, DocumentError) else "other", str(error) or repr(error)


def _error(kind: str, content: Any) -> BaseException:
    errors: dict[str, type[BaseException]] = {"interrupt": Interrupted, "document": DocumentError}
    return errors.get(kind, TrainingError)(content)
