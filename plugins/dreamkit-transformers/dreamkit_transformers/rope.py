"""Rotary embeddings whose frequencies depend on the length of a document.

LongRoPE (arXiv 2402.13753) has two sets of factors, and documents past a length use the second one for all their
tokens. The library chooses one set for a whole batch, by its greatest position. Here each document has its own, as if
it were alone. `dynamic` frequencies change with every token past `max_position_embeddings`, which no document passes.

B rows, T tokens of this call, S tokens so far, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit import DocumentError, Spans, count

LONGROPE = "longrope"  # the library's names
DYNAMIC = "dynamic"


class UnsupportedRopeError(ValueError):
    """Rotary embeddings that dreamkit cannot compute for each document; the message is the reason."""


def length_dependent(config: Any) -> str | None:
    """Return the kind of rotary embedding of `config` that depends on a document's length, or None."""
    kinds = [str(values.get("rope_type")) for values in _parameters(config)]
    return next((kind for kind in kinds if kind == LONGROPE or DYNAMIC in kind), None)


def switch_length(config: Any) -> int | None:
    """Return the greatest length, in tokens, of a document with the short factors; None without LongRoPE.

    Raises:
        UnsupportedRopeError: some layers switch at another length.
    """
    lengths = {
        values["original_max_position_embeddings"]
        for values in _parameters(config)
        if values.get("rope_type") == LONGROPE
    }
    if len(lengths) > 1:
        raise UnsupportedRopeError(
            f"its layers have {LONGROPE} factors that switch at {' and '.join(map(str, sorted(lengths)))} tokens; "
            "dreamkit supports one original_max_position_embeddings"
        )
    return next(iter(lengths), None)


def check_length(config: Any, position_ids_BT: Tensor) -> None:
    """Check that `dynamic` frequencies do not depend on the length of a document.

    Raises:
        DocumentError: a document has more tokens than `max_position_embeddings`.
    """
    rope_type = length_dependent(config)
    if rope_type in (None, LONGROPE):
        return
    length, limit = int(position_ids_BT.max()) + 1, config.max_position_embeddings
    if length > limit:
        raise DocumentError(
            f"expected at most {count(limit, 'token')} (max_position_embeddings), got {length}: past these, rope_type "
            f"'{rope_type}' changes the positions of earlier tokens; shorten the document"
        )


def _parameters(config: Any) -> list[dict[str, Any]]:
    """Return the rope parameters of all layers, or of each type of layer."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return []
    return [each for each in (parameters, *parameters.values()) if isinstance(each, dict)]


def document_lengths(segment_ids_BT: Tensor, position_ids_BS: Tensor, segment_ids_BS: Tensor) -> Tensor:
    """Return, for T tokens (B, T), the length so far of the document of each; that of padding has no meaning."""
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BS[:, None, :]
    return position_ids_BS[:, None, :].masked_fill(~same_BTS, -1).amax(2) + 1


def longer_spans(segment_ids_BT: Tensor, spans: Spans, length: int) -> Tensor:
    """Return a mask (B, T): True for the tokens of documents of more than `length` tokens."""
    longer_BT = torch.zeros_like(segment_ids_BT, dtype=torch.bool)
    for row, documents in enumerate(spans):
        for start, stop in documents:
            longer_BT[row, start:stop] = stop - start > length
    return longer_BT


def passes_switch(
    switch: int,
    position_ids_BT: Tensor,
    segment_ids_BT: Tensor,
    position_ids_BS: Tensor,
    segment_ids_BS: Tensor,
) -> bool:
    """Return True if a document has more than `switch` tokens only with the last T of S slots."""
    earlier = position_ids_BS.shape[1] - position_ids_BT.shape[1]
    if not earlier:
        return False
    old_BT = document_lengths(segment_ids_BT, position_ids_BS[:, :earlier], segment_ids_BS[:, :earlier])
    new_BT = document_lengths(segment_ids_BT, position_ids_BS, segment_ids_BS)
    passes_BT = (old_BT > 0) & (old_BT <= switch) & (switch < new_BT) & (segment_ids_BT != -1)
    return bool(passes_BT.any())


@contextmanager
def factors_by_document(decoder: nn.Module, switch: int, long_BT: Tensor) -> Iterator[None]:
    """Make the rotary embeddings of `decoder` use long factors exactly for the tokens that are True in `long_BT`."""
    modules = [module for module in decoder.modules() if LONGROPE in _kinds(module)]
    try:
        for module in modules:
            module.forward = _forward(module.forward, switch, long_BT)
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own is visible again


def _kinds(module: nn.Module) -> tuple[str, ...]:
    kind = getattr(module, "rope_type", None)
    return tuple(kind.values()) if isinstance(kind, dict) else (kind,) if isinstance(kind, str) else ()


def _forward(own_forward: Any, switch: int, long_BT: Tensor) -> Any:
    """Return a forward pass that takes each token's result from one of two calls of the library's."""

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **named: Any) -> Any:
        # the library compares the greatest position with the switch
        short = own_forward(x, position_ids.clamp(max=switch - 1), *args, **named)
        past_switch = position_ids.new_full((len(position_ids), 1), switch)
        long = own_forward(x, torch.cat([position_ids, past_switch], 1), *args, **named)
        if isinstance(short, Tensor):
            return torch.where(long_BT[..., None], long[:, :-1], short)
        pairs = zip(short, long, strict=True)
        return tuple(torch.where(long_BT[..., None], each[:, :-1], other) for other, each in pairs)

    return forward
