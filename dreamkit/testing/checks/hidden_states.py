"""Checks of a language model's hidden states: which tokens see each other.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamkit.errors import count
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import (
    expect_close,
    expect_finite,
    expect_true,
)
from dreamkit.testing.part_subject import Case, Inputs, seeded, weighted_sum
from dreamkit.testing.subject_kinds import LONGEST, LanguageSubject, positions

KIND = "language_model"
MANY = 4  # documents in a row
MOST_FLOPS = 1.05  # of a packed row, beside those of its documents
paddings = st.integers(0, 3)
seeds = st.integers(0, 999)


def lengths(subject: LanguageSubject) -> st.SearchStrategy[list[int]]:
    """Return lengths of documents that share a row; the first is longer than a sliding window."""
    first = st.integers(max(1, subject.window), subject.window + 4)
    others = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    return st.tuples(first, others).map(lambda both: [both[0], *both[1]])


def _padded(inputs: Inputs, before: int, after: int, seed: int) -> Inputs:
    """Return the rows with padding on both sides; its embeddings and positions are random."""
    rows, _, dim = inputs["embeds"].shape
    with seeded(seed):
        embeds = [10 * torch.randn(rows, count, dim) for count in (before, after)]
        position_ids = [torch.randint(9, (rows, count)) for count in (before, after)]
    segment_ids = [torch.full((rows, count), -1) for count in (before, after)]
    sides = {"embeds": embeds, "position_ids": position_ids, "segment_ids": segment_ids}
    return {name: torch.cat([left, inputs[name], right], 1) for name, (left, right) in sides.items()}


@check(KIND, case=cases, first=st.integers(1, 6))
def causality(subject: LanguageSubject, case: Case, first: int) -> None:
    """The hidden state of a token does not depend on later tokens.

    In training, the model must predict the next word, and cannot copy it from its input.
    """
    first = min(first, case.length - 1)
    inputs = subject.inputs(case)
    changed = {**inputs, "embeds": inputs["embeds"].clone()}
    changed["embeds"][:, first:] = subject.embeds(case.rows, case.length - first, case.seed + 1)
    actual = subject.call_with_shape(subject.part, changed)[:, :first]
    expected = subject.call_with_shape(subject.part, inputs)[:, :first]
    name = f"hidden[:, :{first}]"
    expect_close(actual, expected, f"{name} before changed tokens", f"{name} before the original ones")


@check(KIND, rows=st.integers(2, 3), lengths=lengths, before=paddings, after=paddings, seed=seeds)
def padding_invariance(
    subject: LanguageSubject, rows: int, lengths: list[int], before: int, after: int, seed: int
) -> None:
    """Padding (segment -1) before or after a row does not change its hidden states, and those of padding are finite.

    Rows of different lengths can share a batch, in training and in generation.
    """
    length = lengths[0]
    inputs = {"embeds": subject.embeds(rows, length, seed), **positions([length], rows)}
    padded = _padded(inputs, before, after, seed + 1)
    actual = subject.call_with_shape(subject.part, padded)
    expect_finite(actual, "hidden")
    expected = subject.call(subject.part, inputs)
    expect_close(
        actual[:, before : before + length], expected, "hidden beside padding", "hidden without padding"
    )


def _cannot_pack(subject: LanguageSubject) -> str | None:
    return None if subject.part.spec.packing else "its spec has packing=False"


@check(KIND, unless=_cannot_pack, rows=st.integers(2, 3), lengths=lengths, seed=seeds)
def packing_invariance(subject: LanguageSubject, rows: int, lengths: list[int], seed: int) -> None:
    """The hidden states of a document are the same in a packed row as in a row of its own.

    Packing makes training several times faster without changing it, and no document attends to another.
    """
    embeds = subject.embeds(rows, sum(lengths), seed)
    together = subject.call_with_shape(subject.part, {"embeds": embeds, **positions(lengths, rows)})
    call_text = subject.call_text
    start = 0
    for number, length in enumerate(lengths):
        own = {"embeds": embeds[:, start : start + length], **positions([length], rows)}
        alone = subject.call(subject.part, own)
        subject.call_text = f"{call_text}, documents of {lengths} tokens in a row"
        packed = together[:, start : start + length]
        expect_close(packed, alone, f"hidden of packed document {number}", "hidden of it alone")
        start += length


def _attends_to_rows(subject: LanguageSubject) -> str | None:
    return None if subject.part.spec.document_attention else "its spec has document_attention=False"


@check(KIND, unless=_attends_to_rows, rows=st.integers(1, 3), lengths=lengths, after=paddings, seed=seeds)
def document_attention(
    subject: LanguageSubject, rows: int, lengths: list[int], after: int, seed: int
) -> None:
    """With `spans`, hidden states and gradients are the same as without, for no more FLOPs than each document alone.

    A packed row costs what its documents cost, not the square of its length.
    """
    part, ends = subject.part, [0, *accumulate(lengths)]
    documents = [*pairwise(ends)]
    inputs = {"embeds": subject.embeds(rows, ends[-1], seed), **positions(lengths, rows)}
    embeds, *places = _padded(inputs, 0, after, seed + 1).values()
    embeds.requires_grad_()
    call_text = f"forward with spans, documents of {lengths} tokens in each of {count(rows, 'row')}"
    subject.call_text = call_text
    results = []
    for named in ({}, {"spans": [documents] * rows}):
        hidden = part(embeds, *places, **named)
        own = hidden[:, : ends[-1]]
        results.append((own, *torch.autograd.grad(weighted_sum(own), embeds)))
    expect_finite(hidden, "hidden")
    for expected, actual, name in zip(*results, ("hidden", "gradient of embeds"), strict=True):
        expect_close(actual, expected, f"{name} with spans", f"{name} without")
    length = max(1, min(part.spec.max_length, LONGEST) // MANY)
    packed, alone = (_flops(subject, documents, length) for documents in (MANY, 1))
    subject.call_text = f"forward with spans, {MANY} documents in a row, each of length {length}"
    expect_true(packed <= MOST_FLOPS * MANY * alone, f"{packed} FLOPs", f"{MANY} x {alone}, each alone")


def _flops(subject: LanguageSubject, documents: int, length: int) -> int:
    """Return the FLOPs of a row of documents of one length."""
    inputs = {"embeds": subject.embeds(1, documents * length, seed=0), **positions([length] * documents)}
    spans = [*pairwise(range(0, (documents + 1) * length, length))]
    # torch counts the matrix products of attention, but not its fused operator on a CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        subject.part(*inputs.values(), spans=[spans])
    return int(counter.get_total_flops())
