"""Drawing with Stable Diffusion 1.5: keys and values of the condition computed once, or anew in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dreamkit.bench import stage
from dreamkit.kernels.bench.harness import Bench, Case, measured
from dreamkit.kernels.bench.measurements import Record, Records, Verdict, at_least
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.specs import Condition
from dreamkit.registry.registry import Registry

STEPS, QUERIES = 50, 64
TABLE = f"drawing, {STEPS} steps, without decoding"
EACH_STEP, KEPT = "each step", "ours, kept"
IMAGES = (1, 4)


def decoder(small: bool, device: torch.device) -> ImageDecoder:
    """With random weights, in the dtype of a GPU's drawing."""
    registry = Registry.load()
    cls: Any = registry.get("image_decoder", "stable-diffusion")
    config = cls.Config(**stage.decoder_config(small, registry))
    made: ImageDecoder = stage.at_random(lambda: cls.from_config(config), device)
    return made.bfloat16().eval()


def draw(decoder: ImageDecoder, positive: Condition, negative: Condition, steps: int = STEPS) -> Tensor:
    """The last latents of a guided drawing, always of the same noise."""
    generator = torch.Generator().manual_seed(0)
    *_, last = decoder.draw_steps(positive, negative, steps=steps, generators=generator)
    return last.latents


def draw_projecting(
    decoder: ImageDecoder, positive: Condition, negative: Condition, steps: int = STEPS
) -> Tensor:
    """As `draw`, but that nothing is kept from step to step."""
    with patch.object(decoder, "cache_condition", lambda condition: nullcontext()):
        return draw(decoder, positive, negative, steps)


def conditions(decoder: ImageDecoder, images: int, queries: int = QUERIES) -> tuple[Condition, Condition]:
    """With and without a prompt, at random."""
    device = next(decoder.parameters()).device
    shape = (2, images, queries, decoder.spec.context_dim)
    positive, negative = torch.randn(shape, device=device, dtype=torch.bfloat16)
    return Condition(positive), Condition(negative)


def _inputs(made: Callable[[], ImageDecoder], images: int, steps: int) -> tuple[Any, ...]:
    return made(), *conditions(made(), images), steps


def section(bench: Bench) -> Iterator[Record]:
    """Latents must be equal to the bit."""
    made = cache(partial(decoder, bench.small, bench.device))
    steps = 3 if bench.small else STEPS
    for images in IMAGES:
        case = Case(
            TABLE,
            f"{images} images" if images > 1 else "1 image",
            partial(_inputs, made, images, steps),
            {EACH_STEP: draw_projecting, KEPT: draw},
            tolerance=0,
        )
        yield from measured(bench, case)


def targets(records: Records) -> Iterator[Verdict]:
    """Exact, and never slower."""
    kept = [record for record in records if record.candidate == KEPT]
    failed = [record.problem for record in kept if record.failed]
    ran = [record for record in kept if record.figure is not None]
    target = "keys and values kept: latents equal to the bit"
    yield Verdict(
        target, False if failed else True if ran else None, "; ".join(failed) or f"{len(ran)} cases"
    )
    cases = dict.fromkeys(record.case for record in kept)
    found = [(records.speedup(TABLE, case, EACH_STEP, KEPT), case) for case in cases]
    yield at_least("keys and values kept: never slower", 1.0, found, "x")
