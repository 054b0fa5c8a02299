"""The cache of keys and values. Between calls of the model, its rows may leave, be joined by others, or be cut.

B rows, S slots.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit import LanguageModel


class Cache:
    """The tensors (B, S, ...) of earlier calls by name: each block's keys and values, positions and segments.

    No token attends to an empty slot (segment -1), because no token has its segment.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def extend(self, name: str, new: Tensor) -> Tensor:
        """Append `new` (B, T, ...) to the tensor `name`; return the whole tensor (B, S, ...)."""
        self.tensors[name] = torch.cat([self.tensors[name], new], 1) if name in self.tensors else new
        return self.tensors[name]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, and as many slots as the longest of them has tokens."""
        if self.tensors:
            kept = torch.tensor(rows, dtype=torch.long, device=self.tensors["segments"].device)
            is_empty = self.tensors["segments"][kept] == -1
            width = max((~is_empty).sum(1).tolist(), default=0)
            slots = is_empty.long().argsort(dim=1, stable=True)[
                :, :width
            ]  # a row's tokens first, in their order
            self.tensors = {name: each[kept[:, None], slots] for name, each in self.tensors.items()}

    def join(self, other: "Cache") -> None:
        """Append the rows of `other`; rows get as many slots as the longest has tokens."""
        caches = [cache for cache in (self, other) if cache.tensors]
        for cache in caches:
            cache.select(range(len(cache.tensors["segments"])))
        width = max((cache.tensors["segments"].shape[1] for cache in caches), default=0)
        for name in caches[-1].tensors if caches else ():
            empty = -1 if name == "segments" else 0
            self.tensors[name] = torch.cat([_padded(cache.tensors[name], width, empty) for cache in caches])

    def truncate(self, lengths: Sequence[int]) -> None:
        """Keep the first tokens of each row, as many as `lengths` has for it."""
        if self.tensors:
            segments = self.tensors["segments"]
            cut = (segments != -1).cumsum(1) > torch.tensor(lengths, device=segments.device)[:, None]
            self.tensors["segments"] = segments.masked_fill(cut, -1)
            self.select(range(len(segments)))


def _padded(tensor: Tensor, width: int, empty: int) -> Tensor:
    """Return `tensor` (B, S, ...) with slots of the value `empty` at the end, `width` in all."""
    return F.pad(tensor, [0, 0] * (tensor.ndim - 2) + [0, width - tensor.shape[1]], value=empty)


class CachedRows(LanguageModel):
    """A language model with such a cache."""

    def new_cache(self) -> Cache:
        return Cache()

    def select_rows(self, cache: Cache, rows: Sequence[int]) -> bool:
        cache.select(rows)
        return True

    def join_rows(self, cache: Cache, other: Cache) -> bool:
        cache.join(other)
        return True

    def truncate_rows(self, cache: Cache, lengths: Sequence[int]) -> bool:
        cache.truncate(lengths)
        return True

    def cache_bytes(self, cache: Cache) -> int:
        return sum(each.nbytes for each in cache.tensors.values())
