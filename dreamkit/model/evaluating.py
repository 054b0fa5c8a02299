"""Evaluation mode for a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode in the block, then back to its mode before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
