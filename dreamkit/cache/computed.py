"""Rows of computed tensors, as a batch takes them in place of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit.data.batch import Moments

EXTRAS = "extras."  # before the names of a decoder's extras, in a table of latents

Named = Sequence[tuple[str, Picture]]


class Tables(ABC):
    """Tables as a `dreamkit.data.batch.Collator` takes them."""

    @abstractmethod
    def rows(self, table: str, pictures: Named) -> dict[str, Tensor] | None:
        """The tensors (N, ...) of these pictures; None: there is no such table."""

    def features(self, pictures: Named) -> Tensor | None:
        rows = self.rows("features", pictures)
        return None if rows is None else rows["features"]

    def moments(self, pictures: Named) -> Moments | None:
        rows = self.rows("latents", pictures)
        if rows is None:
            return None
        extras = {name.removeprefix(EXTRAS): rows[name] for name in rows if name.startswith(EXTRAS)}
        return Moments(rows["mean"], rows.get("std"), extras)
