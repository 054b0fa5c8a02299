"""Drawing with Stable Diffusion 1.5 and guidance: beside drawing without the condition's cache, and bare calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import paper_stage
from benchmarks.measure import Case, compile_options
from dreamkit.parts.specs import Condition
from dreamkit.registry.registry import Registry

STEPS, QUERIES = 50, 64


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Latents after all steps, without decoding them; a compiled network computes keys and values in each step."""
    steps = 3 if small else STEPS
    candidates = {
        "eager": lambda decoder, _, *conditions: draw(decoder, *conditions, steps, cached=False),
        "torch.compile": lambda _, compiled, *conditions: draw(compiled, *conditions, steps),
        "ours": lambda decoder, _, *conditions: draw(decoder, *conditions, steps),
    }
    for images in (1, 4):
        name = f"drawing, images {images}, {steps} steps"
        make_inputs = partial(inputs, images, device, small)
        # bfloat16 differences of a compiled network add up over the steps
        yield Case(name, make_inputs, candidates, tolerance=0.1, bitwise=("ours",))
    yield Case(
        f"drawing and decoding, images 4, {steps} steps",
        partial(recorded_inputs, 4, device, small, steps),
        {"bare calls": lambda bare, _: bare(), "ours": lambda _, ours: ours()},
        bitwise=("ours",),
    )


def draw(
    decoder: Any, positive: Condition, negative: Condition, steps: int = STEPS, cached: bool = True
) -> Tensor:
    """Return the last latents of a guided drawing, always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    without_cache = patch.object(decoder, "cache_condition", lambda condition: nullcontext())
    with nullcontext() if cached else without_cache:
        *_, last = decoder.draw_steps(positive, negative, steps=steps, generators=generator)
    return last.latents


def recorded_inputs(
    images: int, device: torch.device, small: bool, steps: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return two functions that return the same images: one replays the calls of the networks alone, one draws."""
    decoder, _, *conditions = inputs(images, device, small)

    @torch.no_grad()
    def ours() -> Tensor:
        images: Tensor = decoder.decode(draw(decoder, *conditions, steps))
        return images

    return replayed(decoder, ours), ours


def replayed(decoder: Any, drawing: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the calls of UNet and autoencoder in `drawing`; return a function that calls them again."""
    calls: list[tuple[Any, Any]] = []
    hook = decoder.network.register_forward_pre_hook(
        lambda _, args, options: calls.append((args, options)), with_kwargs=True
    )
    with patch.object(decoder.vae, "decode", wraps=decoder.vae.decode) as decode:
        drawing()
    hook.remove()
    (latents,) = decode.call_args.args

    @torch.no_grad()
    def replay() -> Tensor:
        for args, options in calls:
            decoder.network(*args, **options)
        return (decoder.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    return replay


def inputs(images: int, device: torch.device, small: bool) -> tuple[Any, Any, Condition, Condition]:
    """Return a random decoder, its copy with a compiled network, and two random conditions: positive and negative."""
    torch.manual_seed(0)
    cls: Any = Registry.load().get("image_decoder", "stable-diffusion")
    config = paper_stage.parts(small)["image_decoder"]["config"]
    decoder = cls.from_config(cls.Config(config=config)).to(device).bfloat16().eval()
    compiled = deepcopy(decoder)
    compiled.network.compile(**compile_options(small))
    contexts = torch.randn(2, images, QUERIES, decoder.spec.context_dim, device=device, dtype=torch.bfloat16)
    return decoder, compiled, Condition(contexts[0]), Condition(contexts[1])
