"""Seeds of documents."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Final

from dreamkit.errors import DocumentError, DreamkitError, count, describe_value

MAX_SEED: Final = 2**64 - 1


def seeds_of(seed: int | Sequence[int], prompts: int) -> list[int]:
    """Return a seed for each of `prompts` prompts.

    Raises:
        DocumentError: the number of seeds is wrong.
        DreamkitError: a seed is not an integer of 64 bits without a sign.
    """
    seeds = list(seed) if isinstance(seed, Sequence) else [seed] * prompts
    if len(seeds) != prompts:
        raise DocumentError(
            f"expected {count(prompts, 'seed')} for {count(prompts, 'prompt')}, got {len(seeds)}; pass one each, or one"
        )
    return [checked_seed(each) for each in seeds]


def checked_seed(seed: Any) -> int:
    """Return a seed as an int.

    Raises:
        DreamkitError: it is not an integer of 64 bits without a sign.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= MAX_SEED:
        raise DreamkitError(f"seed: expected an integer from 0 to {MAX_SEED}, got {describe_value(seed)}")
    return int(seed)
