"""Attention within each document of a row, in the place of one attention over the row under a mask.

It costs what the documents cost, and holds no mask (B, 1, T, T). transformers hands extra arguments of the model
through to its attention function, by whose name the config chooses it.

B rows, H heads, T tokens of a row, S keys, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from dreamkit import Spans

NAME = "dreamkit_documents"
# Arguments of attention functions that its output does not depend on here, besides those of the function below. A
# model with any other, such as a soft cap or an index of blocks, runs under masks.
OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")
HARMLESS = frozenset({"position_ids", "use_cache", "cache_position", *OUTPUTS})
PASSED = frozenset({"dropout", "scaling", "is_causal"})


def document_attention(
    module: Any,
    query_BHTd: Tensor,
    key_BHSd: Tensor,
    value_BHSd: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Spans | None = None,
    sliding_window: int | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """Return the attention (B, T, H, d) of each document in `spans` alone; zeros for padding.

    `attention_mask` is not used. Without `spans`, this is the library's scaled dot-product attention under the mask; an
    empty mask is none.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if unknown := [
        name for name, value in named.items() if value is not None and name not in HARMLESS | PASSED
    ]:
        raise NotImplementedError(f"attention by document does not know {unknown[0]}")
    if spans is None:
        if attention_mask is not None and not attention_mask.numel():
            attention_mask = None
        return sdpa_attention_forward(module, query_BHTd, key_BHSd, value_BHSd, attention_mask, **named)
    heads, tokens = query_BHTd.shape[1:3]
    outputs, row = [], 0
    for documents, same in groupby(spans):  # rows divided alike run as one batch
        rows = slice(row, row := row + len([*same]))
        pieces, end = [], 0
        for start, stop in documents:
            query, key, value = (tensor[rows, :, start:stop] for tensor in (query_BHTd, key_BHSd, value_BHSd))
            mask = _window_mask(stop - start, sliding_window, query.device)
            output, _ = sdpa_attention_forward(module, query, key, value, mask, **named)
            pieces += [_padding(value, end, start, heads), output]
            end = stop
        outputs.append(torch.cat([*pieces, _padding(value_BHSd[rows], end, tokens, heads)], 1))
    return torch.cat(outputs), None


def _padding(value_BHSd: Tensor, start: int, stop: int, heads: int) -> Tensor:
    """Return zeros (B, stop - start, H, d), which are the output of padding."""
    return value_BHSd.new_zeros(value_BHSd.shape[0], stop - start, heads, value_BHSd.shape[-1])


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask (1, 1, T, T) of a document of T tokens that is longer than its layer's window, else None."""
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=device)
    distance = at[:, None] - at
    return ((distance >= 0) & (distance < window))[None, None]


@contextmanager
def replaced_attention(config: Any) -> Iterator[None]:
    """Let models of `config` use `document_attention` in the block."""
    before = config._attn_implementation
    use_document_attention(config)
    try:
        yield
    finally:
        config._attn_implementation = before


def use_document_attention(config: Any) -> None:
    """Let models of `config` use `document_attention`."""
    # here, since they import the library's networks
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, document_attention)
    # without `spans`, the library makes the masks that its scaled dot-product attention takes
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
