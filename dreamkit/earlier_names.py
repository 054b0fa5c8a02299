"""Earlier names of public members and arguments. They still work, with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class EarlierName:
    """A class attribute that stands for the member with today's name: `spec_from = EarlierName("infer_spec")`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set_name__(self, owner: type, earlier: str) -> None:
        self.owner, self.earlier = owner, earlier

    def __get__(self, instance: object | None, owner: type) -> Any:
        warn_of(self.earlier, self.name)
        target = owner if instance is None else instance
        holders = [cls for cls in owner.__mro__ if isinstance(vars(cls).get(self.earlier), EarlierName)]
        caller = holders[: holders.index(self.owner)]
        # Only `super()` of the class before finds this attribute behind another one: continue after that class.
        return getattr(super(caller[-1], target) if caller else target, self.name)

    def __set__(self, instance: object, value: object) -> None:
        warn_of(self.earlier, self.name)
        setattr(instance, self.name, value)


def adopt_earlier_names(cls: type) -> None:
    """Give members that `cls` or a mixin defines under an earlier name today's name, so that the interface calls them.

    Call it from `__init_subclass__`.
    """
    known = {name: value for base in cls.__mro__ for name, value in vars(base).items() if _is_earlier(value)}
    for earlier, attribute in known.items():
        definer = next(base for base in cls.__mro__ if earlier in vars(base))
        if _is_earlier(vars(definer)[earlier]):
            continue
        warn_of(f"{cls.__qualname__}.{earlier}", attribute.name, stacklevel=5)  # the class statement
        if attribute.name not in vars(cls):
            setattr(cls, attribute.name, vars(definer)[earlier])
        _set(cls, earlier, attribute.name)


def with_earlier_arguments(**names: str) -> Callable[[Function], Function]:
    """Decorate a function so that it also takes keyword arguments by earlier names: `learn="train_on"`.

    The earlier name wins, because `dataclasses.replace` passes every field by today's name too.
    """

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
            _set(cls, earlier, name)
        return cls

    return decorate


def warn_of(earlier: str, name: str, stacklevel: int = 3) -> None:
    """Warn that `earlier` is now called `name`."""
    warnings.warn(f"'{earlier}' is now called '{name}'", DeprecationWarning, stacklevel=stacklevel)


def _is_earlier(value: object) -> bool:
    return isinstance(value, EarlierName)


def _set(cls: type, earlier: str, name: str) -> None:
    attribute = EarlierName(name)
    attribute.__set_name__(cls, earlier)
    setattr(cls, earlier, attribute)
