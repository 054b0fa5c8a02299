"""Attention masks from segments and positions, and the cache whose tokens they know.

transformers would guess packing from positions that restart, at the price of a device-to-host copy, and not
at all with a cache. Masks that are given it takes as they are.

B rows, T tokens of this call, S tokens seen: those of the cache, then these T.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

SLIDING = "sliding_attention"  # the library's name for layers with a window


@dataclass
class TokenCache:
    """Keys and values of every layer, and the position and segment of every slot, empty ones (-1) included.

    The plain cache drops nothing. One with a window would count empty slots; here masks do the windowing.
    """

    layers: DynamicCache = field(default_factory=DynamicCache)
    position_ids_BS: Tensor | None = None
    segment_ids_BS: Tensor | None = None

    def extend(self, position_ids_BT: Tensor, segment_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Takes T new slots; returns the positions and segments (B, S) of all."""
        if self.position_ids_BS is not None and self.segment_ids_BS is not None:
            position_ids_BT = torch.cat([self.position_ids_BS, position_ids_BT], dim=1)
            segment_ids_BT = torch.cat([self.segment_ids_BS, segment_ids_BT], dim=1)
        self.position_ids_BS, self.segment_ids_BS = position_ids_BT, segment_ids_BT
        return position_ids_BT, segment_ids_BT


def visible(
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    position_ids_BS: Tensor,
    segment_ids_BS: Tensor,
    window: int | None = None,
) -> Tensor:
    """Which of S tokens each of the last T sees (B, 1, T, S): its own segment's, up to its own position.

    `window` is how many positions it sees at most, its own included. Padding sees itself alone, so that its
    attention is finite.
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
    cache: TokenCache | None,
    dtype: torch.dtype,
    by_type: bool,
) -> Tensor | dict[str, Tensor]:
    """The masks a model of this config takes: one, or one for each type of layer.

    `cache` takes the T tokens' positions and segments.
    """
    seen = (position_ids_BT, segment_ids_BT)
    if cache is not None:
        seen = cache.extend(*seen)

    def mask(window: int | None) -> Tensor:
        allowed = visible(position_ids_BT, segment_ids_BT, *seen, window)
        if config._attn_implementation != "eager":
            return allowed
        forbidden = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, forbidden)

    window = getattr(config, "sliding_window", None)
    if not by_type:
        return mask(window)
    return {name: mask(window if name == SLIDING else None) for name in set(config.layer_types)}
