"""A model that writes changing characters and draws often, for tests of documents of several images."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from dreamkit.model.model import DreamModel


@contextmanager
def talkative(model: DreamModel) -> Iterator[None]:
    """Make a model write characters of one and two bytes and draw often, as its hidden states decide."""
    part = model.language_model
    head, end = part.logits, part.spec.eos_ids[0]
    choices = [*part.tokenize("ab é"), model.token_ids["<dream_start>"], end]

    def logits(hidden: Tensor) -> Tensor:
        every = head(hidden)
        few = torch.full_like(every, -1e3)
        few[..., choices] = (1e3 * every[..., choices]).sin()
        few[..., end] -= 0.7  # documents of several images
        return few

    with patch.object(part, "logits", logits):
        yield
