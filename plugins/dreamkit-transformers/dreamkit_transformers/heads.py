"""What a model makes of its head's output, measured: logits = soft_cap * tanh(scale * head / soft_cap).

T tokens, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dreamkit_transformers.driving import Undrivable, decoder_of

TINY, HUGE = (
    1e-2,
    1e6,
)  # logits that no soft cap bends, and logits that only a soft cap keeps from being as large
PRECISION = 1e-4

Scale = Callable[[Any], float]  # of a config


def logits_of_head(config: Any, models: tuple[Any, Any], ids: Tensor) -> tuple[Scale, float | None]:
    """The scale, said by a config's numbers, and the soft cap, which is so in copies of different sizes.

    Raises:
        Undrivable: the logits are made in some other way, or in one that depends on the sizes.
    """
    measured, caps = [], []
    for model in models:
        raw, logits = _judged(model, ids, TINY)
        scale = float((raw * logits).sum() / raw.square().sum())
        raw, logits = _judged(model, ids, HUGE)
        cap = None if _close(logits, scale * raw) else float(logits.abs().max())
        for size in () if cap is None else (cap / 2, 2 * cap, 8 * cap):
            raw, logits = _judged(model, ids, size / abs(scale or 1))
            if not _close(logits, soft_capped(scale * raw, cap)):
                raise Undrivable(
                    "its logits are neither its head's, nor a number times them, nor soft-capped"
                )
        measured.append(scale)
        caps.append(cap)
    known = [cap for cap in caps if cap is not None]
    if len(known) == 1 or (known and not math.isclose(*known, rel_tol=PRECISION)):
        raise Undrivable(
            f"the soft cap of its logits depends on its sizes: it is {caps[0]}, and then {caps[1]}"
        )
    return _scale_of(config, [model.config for model in models], measured), caps[0]


def _scale_of(config: Any, copies: list[Any], measured: list[float]) -> Scale:
    """The formula that gives what was measured of copies, if what it gives for the config itself is certain."""
    fitting = [
        formula
        for formula in _formulas(config)
        if all(_is(formula, each, scale) for each, scale in zip(copies, measured, strict=True))
    ]
    same = [formula for formula in fitting if _is(formula, config, measured[0])]
    if same and math.isclose(*measured, rel_tol=PRECISION):
        return same[0]
    if fitting and all(_is(formula, config, fitting[0](config)) for formula in fitting):
        return fitting[0]
    raise Undrivable(f"its logits are {measured[0]:.6g} times its head's, which its config does not explain")


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _judged(model: Any, ids: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """What its head makes of a text, stretched to `size` at most, and the model's logits for that (T, V)."""
    head = model.get_output_embeddings()
    raw = head(decoder_of(model)(ids[:1], use_cache=False).last_hidden_state)
    stretch = size / raw.abs().max()
    hook = head.register_forward_hook(lambda _module, _inputs, output: stretch * output)
    try:
        logits = model(ids[:1], use_cache=False).logits
    finally:
        hook.remove()
    return stretch * raw, logits


def _formulas(config: Any) -> Iterator[Scale]:
    """One, each number of the config, one over it, and each number over another."""
    names = [name for name, value in config.to_dict().items() if type(value) in (int, float) and value > 0]
    yield lambda _: 1.0
    for name in names:
        yield lambda each, name=name: float(getattr(each, name))  # type: ignore[misc]  # a default binds it
        yield lambda each, name=name: 1 / getattr(each, name)  # type: ignore[misc]
    for name in names:
        for other in names:
            yield lambda each, name=name, other=other: getattr(each, name) / getattr(each, other)  # type: ignore[misc]


def _is(formula: Scale, config: Any, measured: float) -> bool:
    try:
        return math.isclose(formula(config), measured, rel_tol=PRECISION)
    except Exception:  # a number that is none in this config, nought, or another one in each layer
        return False


def _close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool(
        (found - wanted).abs().max() <= PRECISION * wanted.abs().max()
    )
