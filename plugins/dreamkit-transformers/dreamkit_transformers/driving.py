"""How a library's decoder is run, in the way that it was found to honour.

B rows, T tokens of this call, S tokens seen, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from dreamkit_transformers.masks import TokenCache, attention_masks

Masks = Literal["by type", "one", "none"]


class Undrivable(Exception):
    """A model that dreamkit cannot use; the message is the reason."""


@dataclass(frozen=True)
class Abilities:
    """What a model can do, and where its parts are.

    `norm` is the name of the final norm, None where there is none. `masks` says which masks it honours together with
    positions: one `by type` of layer, `one` for all, or `none`; then a row holds one document, at its beginning, and
    what follows is padding that a causal model does not see. `cache`: decoding goes on from one with empty slots.
    `linear_layers` are the patterns of the names of those that are called as layers, where an adapter acts.
    `width` is the config's name for the width of embeddings and hidden states, `length` its own name for the longest
    text, None where it has the usual one or no end. `on_meta`: a forward pass can be tried without memory for weights,
    for which some operators are not made.
    Logits are soft_cap * tanh(scale * head / soft_cap), without the first two where `soft_cap` is None.
    """

    norm: str | None
    masks: Masks
    cache: bool
    linear_layers: frozenset[str]
    width: str = "hidden_size"
    scale: float = 1.0
    soft_cap: float | None = None
    length: str | None = None
    on_meta: bool = True


def decoder_of(model: Any) -> Any:
    """The model without its head."""
    if model.base_model is not model:
        return model.base_model
    return next(
        (child for child in model.children() if isinstance(child, transformers.PreTrainedModel)), model
    )


def new_cache(config: Any, masks: Masks) -> TokenCache:
    # the config's own kind of cache has windows, which count empty slots, and the states of layers without attention
    return TokenCache(DynamicCache(config=config)) if masks == "none" else TokenCache()


def run(
    decoder: Any,
    masks: Masks,
    embeds_BTD: Tensor,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    cache: TokenCache | None = None,
) -> Tensor:
    """Input embeddings (B, T, D) -> the decoder's last hidden states (B, T, D)."""
    if masks == "none":
        hidden_BTD = _run_apart(decoder, embeds_BTD, position_ids_BT, segment_ids_BT, cache)
        return hidden_BTD.to(embeds_BTD.dtype)  # some models without attention add up their layers in float32
    given = attention_masks(
        decoder.config,
        position_ids_BT,
        segment_ids_BT,
        cache,
        dtype=embeds_BTD.dtype,
        by_type=masks == "by type",
    )
    return decoder(
        inputs_embeds=embeds_BTD,
        position_ids=position_ids_BT,
        attention_mask=given,
        cache=None if cache is None else cache.layers,
        use_cache=cache is not None,
    ).last_hidden_state


def _run_apart(
    decoder: Any,
    embeds_BTD: Tensor,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    cache: TokenCache | None,
) -> Tensor:
    """With the library's own masks and positions, for rows of one document."""
    if cache is not None:
        _, segment_ids_BS = cache.extend(position_ids_BT, segment_ids_BT)
        filled_BS = (segment_ids_BS != -1).long()
        return decoder(
            inputs_embeds=embeds_BTD, attention_mask=filled_BS, cache=cache.layers, use_cache=True
        ).last_hidden_state
    order_BT1 = (segment_ids_BT == -1).long().argsort(dim=1, stable=True)[..., None]
    moved_BTD = embeds_BTD.gather(1, order_BT1.expand_as(embeds_BTD))
    hidden_BTD = decoder(inputs_embeds=moved_BTD, use_cache=False).last_hidden_state
    return torch.zeros_like(hidden_BTD).scatter(1, order_BT1.expand_as(hidden_BTD), hidden_BTD)
