"""The interface of a data set, which is found by name in a recipe's `data`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dreamkit.document import Document


class Dataset(ABC):
    """Documents by number. Made from its recipe section: `Dataset(Config(...))`; must be cheap to make."""

    Config: ClassVar[type]

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Document:
        """Document `index` of `len(self)`; the same every time."""
