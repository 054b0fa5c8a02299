"""Run a decoder of transformers with the masks that it respects.

B rows, T tokens of this call, S tokens so far, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from dreamkit import Spans
from dreamkit_transformers.document_attention import NAME as DOCUMENTS
from dreamkit_transformers.masks import attention_masks, window_of
from dreamkit_transformers.rope import (
    check_length,
    document_lengths,
    factors_by_document,
    longer_spans,
    passes_switch,
    switch_length,
)
from dreamkit_transformers.token_cache import TokenCache

Masks = Literal["by type", "one", "none"]


class UnsupportedModelError(Exception):
    """A model that dreamkit cannot run; the message is the reason."""


@dataclass(frozen=True)
class Abilities:
    """Features of a model, and the names of its parts.

    `norm` is the name of the final norm, or None. `masks` are the masks that the model respects together with
    positions: one `by type` of layer, `one` for all layers, or `none`. With `none`, a row holds one document at its
    start; the padding after it is invisible to a causal model. `cache` is True if decoding continues from a cache,
    `cache_padding` if it does so with empty slots. `linear_layers` are the name patterns of linear layers called as
    modules, where adapters act. `on_meta` is True if a forward pass runs on the meta device, which lacks some
    operators. `documents` is True if attention can run in each document of a row alone.
    Logits are soft_cap * tanh(scale * head / soft_cap), or scale * head if `soft_cap` is None.
    """

    norm: str | None
    masks: Masks
    cache: bool
    linear_layers: frozenset[str]
    scale: float = 1.0
    soft_cap: float | None = None
    on_meta: bool = True
    documents: bool = False
    cache_padding: bool = True


def decoder_of(model: Any) -> Any:
    """Return the model without its head."""
    if model.base_model is not model:
        return model.base_model
    return next(
        (child for child in model.children() if isinstance(child, transformers.PreTrainedModel)), model
    )


@contextmanager
def replaced_module(model: nn.Module, name: str | None, module: nn.Module) -> Iterator[None]:
    """Replace the module `name` of `model`; None replaces nothing."""
    if name is None:
        yield
        return
    original = model.get_submodule(name)
    model.set_submodule(name, module)
    try:
        yield
    finally:
        model.set_submodule(name, original)


def new_cache(config: Any, masks: Masks, *, padding: bool = True) -> TokenCache:
    """Return an empty KV cache for a decoder that respects `masks`; without `padding`, for one document."""
    # only the config's own cache holds the states of layers without attention; its windows count empty slots
    layers = DynamicCache(config=config) if masks == "none" else DynamicCache()
    return TokenCache(layers, padding=padding)


def truncate_rows(config: Any, cache: TokenCache, lengths: Sequence[int]) -> bool:
    """Keep the first tokens of each row; return False if the tokens that go have changed the keys of those that stay.

    They have in recurrent states, and if a document passed the length at which the model's factors switch.
    """
    switch = switch_length(config)
    if not cache.has_slots or not (cache.padding or len(set(lengths)) == 1):
        return False
    if switch is not None:
        pairs = zip(cache.lengths(), lengths, strict=True)
        if any(before > switch >= after for before, after in pairs):
            return False
    cache.truncate(lengths)
    return True


def run_decoder(
    decoder: Any,
    masks: Masks,
    embeds_BTD: Tensor,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    cache: TokenCache | None = None,
    spans: Spans | None = None,
) -> Tensor:
    """Return the decoder's last hidden states (B, T, D) for input embeddings (B, T, D).

    With `spans`, attention runs in each document alone; `cache` is then empty.

    Raises:
        DocumentError: a document is too long for `dynamic` rotary embeddings.
    """
    check_length(decoder.config, position_ids_BT)
    if masks == "none":
        hidden_BTD = _run_unmasked(decoder, embeds_BTD, position_ids_BT, segment_ids_BT, cache)
        return hidden_BTD.to(embeds_BTD.dtype)  # some models without attention sum their layers in float32
    slots = (position_ids_BT, segment_ids_BT)
    if cache is not None:
        slots = cache.extend(*slots)
    switch = switch_length(decoder.config)
    if switch is None:
        return _run_masked(decoder, masks, embeds_BTD, position_ids_BT, segment_ids_BT, slots, cache, spans)
    tokens = embeds_BTD.shape[1]
    if cache is not None:
        embeds_BSD = cache.extend_embeds(embeds_BTD)
        if passes_switch(switch, position_ids_BT, segment_ids_BT, *slots):
            # all keys and values of the document change, so all slots are computed anew
            cache.layers, spans = DynamicCache(), None
            embeds_BTD, (position_ids_BT, segment_ids_BT) = embeds_BSD, slots
    if spans is None:
        long_BT = document_lengths(segment_ids_BT, *slots) > switch
    else:
        long_BT = longer_spans(segment_ids_BT, spans, switch)
    with factors_by_document(decoder, switch, long_BT):
        hidden_BTD = _run_masked(
            decoder, masks, embeds_BTD, position_ids_BT, segment_ids_BT, slots, cache, spans
        )
    return hidden_BTD[:, -tokens:]


def _run_masked(
    decoder: Any,
    masks: Masks,
    embeds_BTD: Tensor,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    slots: tuple[Tensor, Tensor],
    cache: TokenCache | None,
    spans: Spans | None,
) -> Tensor:
    """Run T tokens after those in `cache`; `slots` are the positions and segments (B, S) of both."""
    by_type = masks == "by type"
    if spans is None and not _sees_all(decoder.config, embeds_BTD, slots, cache):
        attention_mask: Any = attention_masks(
            decoder.config, position_ids_BT, segment_ids_BT, *slots, dtype=embeds_BTD.dtype, by_type=by_type
        )
        documents = {}
    else:
        # the library makes a mask where there is none, but takes any of four dimensions
        unused = embeds_BTD.new_empty(0, 0, 0, 0)
        attention_mask = dict.fromkeys(decoder.config.layer_types, unused) if by_type else unused
        documents = {} if spans is None else {"spans": spans}
    return decoder(
        inputs_embeds=embeds_BTD,
        position_ids=position_ids_BT,
        attention_mask=attention_mask,
        cache=None if cache is None else cache.layers,
        use_cache=cache is not None,
        **documents,
    ).last_hidden_state


def _sees_all(
    config: Any, embeds_BTD: Tensor, slots: tuple[Tensor, Tensor], cache: TokenCache | None
) -> bool:
    """Return True if one more token of each row sees all slots, so that attention needs no mask."""
    window = window_of(config)
    return (
        config._attn_implementation == DOCUMENTS
        and cache is not None
        and cache.is_full
        and embeds_BTD.shape[1] == 1
        and (window is None or slots[0].shape[1] <= window)
    )


def _run_unmasked(
    decoder: Any,
    embeds_BTD: Tensor,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    cache: TokenCache | None,
) -> Tensor:
    """Run rows of one document each with the library's own masks and positions."""
    if cache is not None:
        _, segment_ids_BS = cache.extend(position_ids_BT, segment_ids_BT)
        # models without attention take a mask of the tokens of this call, or none
        filled_BS = (segment_ids_BS != -1).long() if cache.padding else None
        return decoder(
            inputs_embeds=embeds_BTD, attention_mask=filled_BS, cache=cache.layers, use_cache=True
        ).last_hidden_state
    # move padding to the end of each row, where a causal model does not see it, and move the outputs back
    order_BT1 = (segment_ids_BT == -1).long().argsort(dim=1, stable=True)[..., None]
    moved_BTD = embeds_BTD.gather(1, order_BT1.expand_as(embeds_BTD))
    hidden_BTD = decoder(inputs_embeds=moved_BTD, use_cache=False).last_hidden_state
    return torch.zeros_like(hidden_BTD).scatter(1, order_BT1.expand_as(hidden_BTD), hidden_BTD)
