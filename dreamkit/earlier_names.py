"""Earlier names of public members and arguments. They still work, with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class EarlierName:
    """A class attribute that reads as the member with today's name: `spec_from = EarlierName("infer_spec")`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, earlier: str) -> None:
        self.earlier = earlier

    def __get__(self, instance: object | None, owner: type) -> Any:
        warn_of(self.earlier, self.name)
        return getattr(owner if instance is None else instance, self.name)


def adopt_earlier_names(cls: type) -> None:
    """Give members that `cls` defines under an earlier name today's name, so that the interface calls them."""
    for earlier, member in list(vars(cls).items()):
        inherited = next((vars(base)[earlier] for base in cls.__mro__[1:] if earlier in vars(base)), None)
        if isinstance(inherited, EarlierName):
            warn_of(f"{cls.__qualname__}.{earlier}", inherited.name)
            if inherited.name not in vars(cls):
                setattr(cls, inherited.name, member)
            delattr(cls, earlier)


def with_earlier_arguments(**names: str) -> Callable[[Function], Function]:
    """Decorate a function so that it also takes keyword arguments by earlier names: `learn="train_on"`."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            for earlier in names.keys() & named.keys():
                warn_of(f"{earlier}=", f"{names[earlier]}=")
                named[names[earlier]] = named.pop(earlier)
            return function(*args, **named)

        return call  # type: ignore[return-value]

    return decorate


def with_earlier_fields(**names: str) -> Callable[[type], type]:
    """Decorate a dataclass so that its fields can also be set and read by earlier names."""

    def decorate(cls: type) -> type:
        cls.__init__ = with_earlier_arguments(**names)(cls.__init__)  # type: ignore[misc]
        for earlier, name in names.items():
            attribute = EarlierName(name)
            attribute.__set_name__(cls, earlier)
            setattr(cls, earlier, attribute)
        return cls

    return decorate


def warn_of(earlier: str, name: str) -> None:
    """Warn that `earlier` is now called `name`."""
    warnings.warn(f"'{earlier}' is now called '{name}'", DeprecationWarning, stacklevel=3)
