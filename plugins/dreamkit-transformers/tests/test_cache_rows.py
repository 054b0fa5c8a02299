"""Rows of a KV cache that join, leave, are copied and cut: each continues as its document alone does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from dreamkit_transformers.causal_lm import CausalLM, LanguageConfig
from dreamkit_transformers.families import Gemma, Mistral, Phi
from dreamkit_transformers.llama import Llama
from dreamkit_transformers.masks import attention_masks
from small_language import LFM2, LONGROPE, MAMBA2, NEXT, SWITCH, make, positions

LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4, "head_dim": 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
CASES: dict[str, Any] = {
    "llama": lambda: make(Llama),
    "mistral with a window": lambda: make(Mistral, sliding_window=4),
    "gemma with types of layers": lambda: make(Gemma, model_type="gemma3_text", **LAYERS),
    "phi with longrope": lambda: make(
        Phi, original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE, sliding_window=None
    ),
    "llama with dynamic frequencies": lambda: make(Llama, rope_parameters=DYNAMIC),
    "bloom without masks": lambda: built(
        {"model_type": "bloom", "hidden_size": 32, "n_head": 4, "n_layer": 2}
    ),
}
TOLERANCES = {"bloom without masks": 1e-5}  # its softmax is in float32
PARTS: dict[str, Any] = {}
LONGEST = 40  # tokens of a document

chunks = st.lists(st.integers(1, 9), min_size=1, max_size=3)
numbers = st.integers(0, 99)
steps = st.one_of(
    st.tuples(st.just("arrive"), chunks),
    st.tuples(st.just("write"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
    st.tuples(st.just("leave"), numbers),
    st.tuples(st.just("copy"), numbers),
    st.tuples(st.just("cut"), st.tuples(numbers, numbers)),
)


def built(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return CausalLM.from_config(LanguageConfig(config=config)).eval()


def part_of(name: str) -> Any:
    """Return the part of a case in float64; hypothesis asks for it in each example."""
    if name not in PARTS:
        part = CASES[name]()
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        PARTS[name] = part.double()
    return PARTS[name]


def batch_of(name: str) -> Batch:
    return Batch(part_of(name), TOLERANCES.get(name, 1e-9))


class Batch:
    """The rows of a cache and the embeddings (T, D) of each row's document so far."""

    def __init__(self, part: Any, tolerance: float) -> None:
        self.part, self.cache, self.tolerance = part, part.new_cache(), tolerance
        self.documents: list[Tensor] = []
        one = part.new_cache()
        part(self.random(1)[None], *positions(1), one)
        self.slot_bytes = part.cache_bytes(one)

    def random(self, tokens: int) -> Tensor:
        return torch.randn(tokens, self.part.spec.dim, dtype=torch.float64)

    def feed(self, counts: list[int]) -> None:
        """Compute random tokens in each row, and compare them with a pass of each document alone."""
        width, first = max(counts), [len(document) for document in self.documents]
        embeds = torch.stack([self.random(width) for _ in counts])
        position_ids = torch.randint(9, (len(counts), width))
        segment_ids = torch.full_like(position_ids, -1)
        for row, (count, start) in enumerate(zip(counts, first, strict=True)):
            position_ids[row, :count] = torch.arange(start, start + count)
            segment_ids[row, :count] = 0
            self.documents[row] = torch.cat([self.documents[row], embeds[row, :count]])
        hidden = self.part(embeds, position_ids, segment_ids, self.cache)
        assert hidden.isfinite().all()
        for row, count in enumerate(counts):
            if count:
                document = self.documents[row]
                alone = self.part(document[None], *positions(len(document)))[0, -count:]
                torch.testing.assert_close(
                    hidden[row, :count], alone, atol=self.tolerance, rtol=self.tolerance
                )

    def arrive(self, chunks: list[int], beginning: Tensor | None = None) -> None:
        """Compute a document in chunks in a cache of its own, then join it."""
        other = Batch(self.part, self.tolerance)
        other.documents = [self.random(0)]
        if beginning is not None and len(beginning):
            other.documents = [beginning]
            self.part(beginning[None], *positions(len(beginning)), other.cache)
        for chunk in chunks:
            other.feed([chunk])
        assert self.part.join_rows(self.cache, other.cache)
        self.documents += other.documents

    def write(self, counts: list[int]) -> None:
        counts = [counts[row % len(counts)] for row in range(len(self.documents))]
        if any(counts):
            self.feed(counts)

    def select(self, rows: list[int]) -> None:
        assert self.part.select_rows(self.cache, rows)
        self.documents = [self.documents[row] for row in rows]

    def leave(self, number: int) -> None:
        rows = [*range(len(self.documents))]
        self.select([row for row in rows if row != number % len(rows)])

    def copy(self, number: int) -> None:
        rows = [*range(len(self.documents))]
        self.select([*rows, number % len(rows)][-4:])

    def cut(self, numbers: tuple[int, int]) -> None:
        """Cut one row, as a kept conversation is; where that is refused, it is computed again."""
        row, length = (number % size for number, size in zip(numbers, (len(self.documents), 20), strict=True))
        document = self.documents[row]
        lengths = [length if each == row else LONGEST for each in range(len(self.documents))]
        if self.part.truncate_rows(self.cache, lengths):
            self.documents[row] = document[:length]
        else:
            assert len(document) > SWITCH >= length
            self.leave(row)
            self.arrive([1], document[:length])

    def assert_no_slot_is_wasted(self) -> None:
        longest = max((len(document) for document in self.documents), default=0)
        assert self.part.cache_bytes(self.cache) == len(self.documents) * longest * self.slot_bytes
        for keys, values, *_ in self.cache.layers:
            for tensor in (keys, values):
                assert tensor.untyped_storage().nbytes() == tensor.nbytes  # not a view of a larger tensor


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=st.lists(steps, min_size=3, max_size=10), seed=st.integers(0, 99))
@torch.no_grad()
def test_documents_that_join_and_leave_a_batch_are_as_alone(
    name: str, schedule: list[tuple[str, Any]], seed: int
) -> None:
    torch.manual_seed(seed)
    batch = batch_of(name)
    for step, argument in schedule:
        if step != "arrive" and not batch.documents:
            continue
        if max((len(document) for document in batch.documents), default=0) > LONGEST - 5:
            batch.select([])
            step, argument = "arrive", [3]
        getattr(batch, step)(argument)
        if step != "write":
            batch.assert_no_slot_is_wasted()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_prefix_is_copied_to_rows_and_kept(name: str) -> None:
    part = part_of(name)
    kept = batch_of(name)
    kept.documents = [kept.random(0)]
    kept.feed([7])
    for rows in (3, 2):
        batch = batch_of(name)
        batch.cache, batch.documents = part.copy_rows(kept.cache, [0] * rows), kept.documents * rows
        batch.assert_no_slot_is_wasted()
        batch.feed([*range(1, rows + 1)])
        batch.feed([1] * rows)
    kept.feed([9])


@pytest.mark.parametrize(("name", "last"), [("llama", 20), ("mistral with a window", 4)])
@torch.no_grad()
def test_a_token_that_sees_all_slots_needs_no_mask(
    name: str, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window of 4 hides slots from the fifth token."""
    masks: list[int] = []  # slots of each mask of one token

    def counted(*args: Any, **named: Any) -> Any:
        tokens, slots = args[1].shape[1], args[3].shape[1]
        masks.extend([slots] if tokens == 1 < slots else [])
        return attention_masks(*args, **named)

    batch = batch_of(name)
    monkeypatch.setattr("dreamkit_transformers.text_decoder.attention_masks", counted)
    batch.arrive([2])
    batch.arrive([2])
    for _ in range(18):
        batch.feed([1, 1])
    assert masks == [*range(last + 1, 21)]
    batch.arrive([3])  # shorter than the others
    masks.clear()
    batch.feed([1, 1, 1])
    assert masks == [21]
    batch.select([2])
    masks.clear()
    batch.feed([1])
    assert masks == ([] if last > 4 else [5])


@torch.no_grad()
def test_a_model_that_reads_a_part_of_its_cache_anew_past_a_length_refuses_to_cut_below_it() -> None:
    batch = batch_of("phi with longrope")
    part = batch.part
    batch.arrive([SWITCH, 3])
    assert not part.truncate_rows(batch.cache, [SWITCH])
    batch.feed([1])  # the cache is unchanged
    assert part.truncate_rows(batch.cache, [SWITCH + 1])
    batch.documents = [batch.documents[0][: SWITCH + 1]]
    batch.feed([2])


ALONE: dict[str, dict[str, Any]] = {
    "recurrent states and attention": {"model_type": "qwen3_next", **NEXT},
    "recurrent states alone": {"model_type": "mamba2", **MAMBA2},
    "convolutions and attention": {"model_type": "lfm2", **LFM2},
}


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_rows_with_recurrent_states_are_selected_and_copied_and_neither_joined_nor_cut(name: str) -> None:
    part = built(ALONE[name])
    assert part.spec.cache and not part.spec.cache_padding
    embeds = 0.5 * torch.randn(4, 12, part.spec.dim)
    position_ids, segment_ids = positions(12)
    whole = part(embeds, position_ids.expand(4, -1), segment_ids.expand(4, -1))
    cache = part.new_cache()

    def run(rows: list[int], start: int, end: int, cache: Any) -> None:
        position_ids = torch.arange(start, end).expand(len(rows), -1)
        hidden = part(embeds[rows, start:end], position_ids, torch.zeros_like(position_ids), cache)
        expected = whole[rows, start:end]
        torch.testing.assert_close(hidden, expected, atol=1e-4 * float(whole.abs().max()), rtol=1e-3)

    run([0, 1, 2], 0, 5, cache)
    copied = part.copy_rows(cache, [2, 0])
    run([2, 0], 5, 9, copied)
    run([0, 1, 2], 5, 6, cache)
    assert part.select_rows(cache, [1, 2])
    run([1, 2], 6, 9, cache)
    assert not part.join_rows(cache, copied)
    assert not part.truncate_rows(cache, [4, 4])
    assert part.cache_bytes(cache) is None
    run([1, 2], 9, 12, cache)
    run([2, 0], 9, 12, copied)
