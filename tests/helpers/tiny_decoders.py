"""Tiny image decoders of the diffusers plug-in, their inputs, and drawings with and without the condition's cache."""

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


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_config(cls: Any, settings: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Any:
    """Return the tiny Config with other settings, and with values of its parts changed: `unet={"sample_size": 4}`."""
    config = cls.tiny_config()
    parts = {name: {**values, **changes.get(name, {})} for name, values in config.config.items()}
    return replace(config, config=parts, **(settings or {}))


def tiny_decoder(
    cls: Any, seed: int = 0, settings: dict[str, Any] | None = None, **changes: dict[str, Any]
) -> Any:
    """Return a decoder of `tiny_config` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return cls.from_config(tiny_config(cls, settings, **changes)).eval()


def condition_of(decoder: Any, images: int = 2, seed: int = 1) -> Condition:
    random, spec = seeded(seed), decoder.spec
    context = torch.randn(images, 5, spec.context_dim, generator=random)
    pooled = None if spec.pooled_dim is None else torch.randn(images, spec.pooled_dim, generator=random)
    return Condition(context, pooled=pooled)


def latents_of(images: int, seed: int = 3, side: int = 8) -> Tensor:
    return torch.randn(images, 4, side, side, generator=seeded(seed))


def draw_steps(decoder: Any, seed: int = 1, guidance: float = 7.5, **options: Any) -> Iterator[Tensor]:
    """Yield the latents of each step of a drawing. They depend on the arguments alone."""
    options = {"negative": condition_of(decoder, seed=seed + 50), "steps": STEPS, **options}
    steps = decoder.draw_steps(
        condition_of(decoder, seed=seed), guidance=guidance, generators=seeded(seed), **options
    )
    return (step.latents for step in steps)


def draw(decoder: Any, seed: int = 1, **options: Any) -> Tensor:
    """Return the latents of all steps."""
    return torch.stack(list(draw_steps(decoder, seed, **options)))


@contextmanager
def uncached(decoder: Any) -> Iterator[None]:
    decoder.cache_condition = lambda condition: nullcontext()
    yield
    del decoder.cache_condition


def assert_cache_changes_nothing(decoder: Any, **options: Any) -> None:
    with uncached(decoder):
        expected = draw(decoder, **options)
    assert torch.equal(draw(decoder, **options), expected)


def count_calls(decoder: Any) -> Counter[str]:
    """Count each call of a module of the network from now on, by the module's name."""
    counts: Counter[str] = Counter()

    def count(name: str) -> Callable[..., None]:
        return lambda *_: counts.update([name])

    for name, module in decoder.network.named_modules():
        module.register_forward_hook(count(name))
    return counts
