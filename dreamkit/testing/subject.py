"""A component under test, which checks build as often as they need a new one."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, ClassVar


class Subject(ABC):
    """A component of one kind.

    `call_text` is the current call, for messages. `definition` is the component's class; until one is built, it is the
    class or function that `build` wraps.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]  # in messages

    def __init__(self, build: Callable[..., Any]) -> None:
        self.call_text = ""
        self.definition: Callable[..., Any] = inspect.unwrap(build)

    @abstractmethod
    def make(self) -> Any:
        """Return a new component.

        Raises:
            KitError: it cannot be built.
        """

    @property
    @abstractmethod
    def config(self) -> Any:
        """The Config that the component is built from."""

    @cached_property
    def part(self) -> Any:
        """The component for checks that do not change it."""
        return self.make()

    def surroundings(self) -> AbstractContextManager[object]:
        """Return a context manager around each check."""
        return nullcontext()

    def renew(self) -> None:
        """Drop `part`: a failed check may have left it in any state."""
        self.__dict__.pop("part", None)
