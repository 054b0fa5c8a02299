"""Drawings of miniature decoders of diffusers' models, with and without what is kept of a constant condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dreamkit import Condition

STEPS = 3


def make(cls: Any, **network: Any) -> Any:
    """A miniature in evaluation mode, with values of its network changed."""
    torch.manual_seed(0)
    small = cls.tiny_config()
    name = cls.layout.network
    return cls.from_config(
        replace(small, config={**small.config, name: {**small.config[name], **network}})
    ).eval()


def condition(decoder: Any, seed: int = 1) -> Condition:
    random, spec = torch.Generator().manual_seed(seed), decoder.spec
    context = torch.randn(2, 5, spec.context_dim, generator=random)
    pooled = None if spec.pooled_dim is None else torch.randn(2, spec.pooled_dim, generator=random)
    return Condition(context, pooled=pooled)


def steps_of(decoder: Any, seed: int = 1, guidance: float = 7.5, **options: Any) -> Iterator[Tensor]:
    """The latents of each step of a drawing, which depend on the arguments alone."""
    options = {"negative": condition(decoder, seed + 50), "steps": STEPS, **options}
    random = torch.Generator().manual_seed(seed)
    given = condition(decoder, seed)
    return (
        done.latents for done in decoder.draw_steps(given, guidance=guidance, generators=random, **options)
    )


def drawn(decoder: Any, seed: int = 1, **options: Any) -> Tensor:
    return torch.stack(list(steps_of(decoder, seed, **options)))


@contextmanager
def keeping_nothing(decoder: Any) -> Iterator[None]:
    decoder.cache_condition = lambda condition: nullcontext()
    yield
    del decoder.cache_condition


def check_drawing(decoder: Any, **options: Any) -> None:
    with keeping_nothing(decoder):
        wanted = drawn(decoder, **options)
    assert torch.equal(drawn(decoder, **options), wanted)


def counting(decoder: Any) -> Counter[str]:
    """How often each module of the network is called from now on."""
    counts: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: counts.update([name])

    for name, module in decoder.network.named_modules():
        module.register_forward_hook(count(name))
    return counts
