"""Attention masks from segments and positions.

transformers would infer packing from positions that restart, which copies from device to host and does not work
with a cache. It uses masks passed to it unchanged.

B rows, T tokens of this call, S tokens so far: those in the cache, then these T.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

SLIDING = "sliding_attention"  # the library's name for layers with a window


def window_of(config: PreTrainedConfig) -> int | None:
    """Return the number of positions that a token of a layer with a window sees, or None.

    A config file may have the key though its class lacks it; the library then ignores it.
    """
    known = any(field.name == "sliding_window" for field in fields(config))
    window: int | None = getattr(config, "sliding_window", None) if known else None
    return window


def visible(
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    position_ids_BS: Tensor,
    segment_ids_BS: Tensor,
    window: int | None = None,
) -> Tensor:
    """Return a mask (B, 1, T, S): True where one of the last T tokens sees one of the S tokens.

    A token sees its own segment up to its own position, at most `window` positions including its own. Padding sees
    only itself, which keeps its attention finite.
    """
    distance = position_ids_BT[:, :, None] - position_ids_BS[:, None, :]
    seen = (segment_ids_BT[:, :, None] == segment_ids_BS[:, None, :]) & (distance >= 0)
    seen &= segment_ids_BS[:, None, :] != -1
    if window is not None:
        seen &= distance < window
    tokens, slots = seen.shape[1:]
    own_slot_T = torch.arange(slots - tokens, slots, device=seen.device)
    itself = own_slot_T[:, None] == torch.arange(slots, device=seen.device)
    return (seen | itself)[:, None]


def attention_masks(
    config: Any,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    position_ids_BS: Tensor,
    segment_ids_BS: Tensor,
    *,
    dtype: torch.dtype,
    by_type: bool,
) -> Tensor | dict[str, Tensor]:
    """Return one mask (B, 1, T, S) for a model of `config`, or one for each type of layer.

    Masks are boolean, or of `dtype` to be added for eager attention.
    """

    def mask(window: int | None) -> Tensor:
        allowed = visible(position_ids_BT, segment_ids_BT, position_ids_BS, segment_ids_BS, window)
        if config._attn_implementation != "eager":
            return allowed
        forbidden = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, forbidden)

    window = window_of(config)
    if not by_type:
        return mask(window)
    return {name: mask(window if name == SLIDING else None) for name in set(config.layer_types)}
