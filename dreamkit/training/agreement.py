"""Agreement of the processes of a run: all of them stop before the same step, or none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist

from dreamkit.distributed import TIMEOUT, meeting_timeout, world_size
from dreamkit.errors import DocumentError, DreamkitError, StorageError, TrainingError
from dreamkit.interrupts import Interrupted, pending

Result = TypeVar("Result")
# By their names in a message between processes, subclasses first.
_DATA_ERRORS: Final[dict[str, type[DocumentError]]] = {"storage": StorageError, "document": DocumentError}


MOST_NUMBERS: Final = 4  # of one call


def _nothing(_: Any) -> Sequence[Any]:
    return ()


class Meeting(NamedTuple, Generic[Result]):
    """The outcome of a call in all processes.

    Attributes:
        result: the result of the function in this process.
        remarks: the remarks of all processes, in their order.
        numbers: `MOST_NUMBERS` numbers of each process, the missing ones 0.
    """

    result: Result
    remarks: list[Any]
    numbers: list[list[float]]


class Agreement:
    """Calls between two steps, whose errors and interrupts stop every process.

    Attributes:
        is_stopping: flag: every process raises now, between two steps. They can save together.
    """

    def __init__(self) -> None:
        self.is_stopping = world_size() == 1
        # The hosts meet, whatever the devices are doing.
        self._hosts: Any = (
            dist.new_group(backend="gloo", timeout=meeting_timeout()) if world_size() > 1 else None
        )

    def call(
        self,
        function: Callable[[], Result],
        remarks: Callable[[Result], Sequence[Any]] = _nothing,
        numbers: Callable[[Result], Sequence[float]] = _nothing,
    ) -> Meeting[Result]:
        """Return the result of `function`, and the remarks and numbers on the results of all processes.

        Every process must call this method here. `remarks` returns plain values, in most calls none. `numbers` returns
        at most `MOST_NUMBERS`.

        Raises:
            Interrupted: a signal waits in a process.
            DocumentError, TrainingError: the function raised in another process.
        """
        error: BaseException | None = pending()
        own: list[Any] = []
        values = [0.0] * MOST_NUMBERS
        if error is None:
            try:
                result = function()
                own = [*remarks(result)]
                values = [*numbers(result), *values][:MOST_NUMBERS]
            except BaseException as raised:
                error = raised
            error = pending() or error  # an interrupt may be the cause
        every = [values]
        if self._hosts is not None:
            error, own, every = self._shared(self._hosts, error, own, values)
        if error is not None:
            raise error
        return Meeting(result, own, every)

    def stop(self, error: DreamkitError) -> NoReturn:
        """Raise an error that every process raises here, between two steps."""
        self.is_stopping = True
        raise error

    def _shared(
        self, hosts: Any, error: BaseException | None, own: list[Any], values: list[float]
    ) -> tuple[BaseException | None, list[Any], list[list[float]]]:
        """Return the error to raise, and the remarks and numbers of all processes.

        They meet once, and again only if one has an error or a remark.
        """
        has_message = error is not None or bool(own)
        message = torch.tensor([float(has_message), *values], dtype=torch.float64)
        messages = [torch.empty_like(message) for _ in range(world_size())]
        with _naming_timeout():
            dist.all_gather(messages, message, group=hosts)
        flags, *columns = torch.stack(messages).T.tolist()
        numbers = [list(row) for row in zip(*columns, strict=True)]
        if not any(flags):
            return None, [], numbers
        every: list[Any] = [None] * world_size()
        dist.all_gather_object(every, (_reason(error), own), group=hosts)
        reasons = [reason for reason, _ in every if reason is not None]
        if reasons:
            self.is_stopping = True
            error = error or _error(*reasons[0])
        return error, [remark for _, remarks in every for remark in remarks], numbers


@contextmanager
def _naming_timeout() -> Iterator[None]:
    """Raise the error of a meeting that another process did not come to in time with what to change.

    Raises:
        TrainingError: such an error.
    """
    try:
        yield
    except RuntimeError as error:
        if "Timed out" not in str(error):  # gloo has no type for it
            raise
        minutes = meeting_timeout().total_seconds() / 60
        raise TrainingError(
            f"a process of the run did not end its step or read its data within {minutes:g} minutes; look where it is "
            f"(py-spy dump --pid PID), or raise the minutes in the environment variable {TIMEOUT}"
        ) from error


def _reason(error: BaseException | None) -> tuple[str, Any] | None:
    """Return an error as plain values for the other processes: not each can be pickled."""
    if error is None:
        return None
    if isinstance(error, Interrupted):
        return "interrupt", error.number
    kind = next((name for name, cls in _DATA_ERRORS.items() if isinstance(error, cls)), "other")
    return kind, str(error) or repr(error)


def _error(kind: str, content: Any) -> BaseException:
    errors: dict[str, type[BaseException]] = {"interrupt": Interrupted, **_DATA_ERRORS}
    return errors.get(kind, TrainingError)(content)
