"""The memory of generation, as a table and as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from dreamkit.errors import count
from dreamkit.plan.generating import GenerationMemory
from dreamkit.plan.sizes import format_bytes
from dreamkit.plan.tables import LEFT_OUT

WORK = {
    "language_model": "reading a prompt",
    "vision_encoder": "reading an image",
    "image_decoder": "drawing an image",
}


def report_generation(by_dtype: Mapping[str, GenerationMemory]) -> Iterator[RenderableType]:
    """Yield the parts of the output of `dreamkit plan --generate`."""
    first = next(iter(by_dtype.values()))
    table = Table("memory of generation", box=None, pad_edge=False)
    for dtype in by_dtype:
        table.add_column(dtype, justify="right")

    def add(name: str, *sizes: int) -> None:
        table.add_row(name, *map(format_bytes, sizes))

    each = [*by_dtype.values()]
    for part in first.weights:
        add(f"weights of {part}", *(memory.weights[part] for memory in each))
    add(
        f"KV cache of {count(first.length, 'token')}, "
        f"{' or '.join(format_bytes(memory.kv_cache_token) for memory in each)} each",
        *(memory.kv_cache for memory in each),
    )
    for part, work in WORK.items():
        add(f"activations of {work}", *(memory.activations[part] for memory in each))
    add("peak", *(memory.peak for memory in each))
    add("peak with --offload", *(memory.offloaded_peak for memory in each))
    yield table
    yield ""
    yield LEFT_OUT


def generation_numbers(by_dtype: Mapping[str, GenerationMemory]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        dtype: asdict(memory)
        | {
            "kv_cache_token": memory.kv_cache_token,
            "peak": memory.peak,
            "offloaded_peak": memory.offloaded_peak,
        }
        for dtype, memory in by_dtype.items()
    }
