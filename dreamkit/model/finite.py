"""Checks that generated values are finite. They stay on the device until the host reads other values anyway.

N images, S denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from dreamkit.errors import DreamkitError

REMEDY: Final = (
    "the model's values overflow: use a checkpoint that was trained to the end or, if you changed the model's dtype, "
    "a wider one, such as bfloat16 in place of float16"
)


def finite_rows(values: Tensor) -> Tensor:
    """Return True for each row of `values` (N, ...) whose values are all finite, as (N,), without a read-back."""
    return values.isfinite().flatten(1).all(1)


def logits_error(document: str, token: int) -> DreamkitError:
    """Return the error about the logits of token number `token` of a document."""
    return DreamkitError(f"{document}: expected finite logits for token {token}, got NaN or inf; {REMEDY}")


def drawn_problems(names: Sequence[str], latents: Sequence[Tensor], decoded: Tensor) -> list[str | None]:
    """Return an error about each of N images whose values are not finite, None for the others; one read-back.

    `latents` of each of S steps and the `decoded` images are given by their `finite_rows` (N,). `names` are those of
    the images in a message.
    """
    problems: list[str | None] = [None] * len(names)
    flags = torch.stack([*latents, decoded]).tolist()
    for row, name in enumerate(names):
        step = next((step for step, finite in enumerate(flags) if not finite[row]), None)
        if step is not None:
            values = f"latents in step {step + 1} of {len(latents)}" if step < len(latents) else "pixels"
            problems[row] = f"{name}: expected finite {values}, got NaN or inf"
    return problems
