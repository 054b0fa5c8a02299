"""A record of the collective operations of FSDP."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# of the tensors of a unit; those of DTensor have another namespace
NAMES = {"_allgather_base_": "gather", "_reduce_scatter_base_": "scatter", "allreduce_": "reduce"}


class Collectives(TorchDispatchMode):
    """A mode that counts the operations between devices by their names and the dtype of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = NAMES.get(func._opname) if func.namespace == "c10d" else None
        if name is not None:
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.counts[name, tensors[0].dtype] += 1
        return func(*args, **(kwargs or {}))

    def of(self, name: str) -> int:
        """Return the number of operations of this name."""
        return sum(number for (each, _), number in self.counts.items() if each == name)
