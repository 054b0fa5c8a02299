"""The numbers of a config between a head's output and the logits: soft_cap * tanh(scale * head / soft_cap)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# names in the library's configs; a scale multiplies in some models and divides in others
SCALES = (
    "logit_scale",  # Cohere
    "logits_scaling",  # Granite, MiniCPM 3, HyperCLOVA X
    "lm_head_multiplier",  # Falcon H1
    "logits_mup_width_multiplier",  # Inkling
)
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "softcap")  # Gemma, RecurrentGemma, Jev


def logit_scales(config: Any) -> list[float]:
    """Return the scales that a model of `config` may apply, in a fixed order: 1, then each number and its inverse.

    Some configs have a word there, such as MPT's "inv_sqrt_d_model", which the library ignores.
    """
    values = [getattr(config, name, None) for name in SCALES]
    numbers = [value for value in values if isinstance(value, int | float) and value]
    return [1.0, *numbers, *(1 / number for number in numbers)]


def named_soft_cap(config: Any) -> float | None:
    """Return the soft cap that `config` names, or None."""
    return next((cap for name in SOFT_CAPS if (cap := getattr(config, name, None)) is not None), None)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(logits / cap), or `logits` if `cap` is None."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
