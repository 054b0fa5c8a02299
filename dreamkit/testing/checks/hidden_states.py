"""Checks of what a language model's tokens see, and of its head.

B rows, T tokens of a row, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.kernels.assemble_embeddings import look_up
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import (
    expect,
    expect_close,
    expect_finite,
    expect_same,
    expect_shape,
    expect_true,
)
from dreamkit.testing.subject import Case, Inputs, seeded, weighted_sum
from dreamkit.testing.subject_kinds import LanguageSubject, positions

KIND = "language_model"
paddings = st.integers(0, 3)
seeds = st.integers(0, 999)


def lengths(subject: LanguageSubject) -> st.SearchStrategy[list[int]]:
    """Lengths of documents that share a row; the first is longer than the sliding window, where there is one."""
    first = st.integers(max(1, subject.window), subject.window + 4)
    others = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    return st.tuples(first, others).map(lambda both: [both[0], *both[1]])


def _embeds(subject: LanguageSubject, rows: int, length: int, seed: int) -> Tensor:
    with seeded(seed):
        return torch.randn(rows, length, subject.part.spec.dim)


def _padded(inputs: Inputs, before: int, after: int, seed: int) -> Inputs:
    """The rows with padding on both sides, whose embeddings and positions may be anything."""
    rows, _, dim = inputs["embeds"].shape
    with seeded(seed):
        noise = [10 * torch.randn(rows, count, dim) for count in (before, after)]
        anywhere = [torch.randint(9, (rows, count)) for count in (before, after)]
    nowhere = [torch.full((rows, count), -1) for count in (before, after)]
    sides = {"embeds": noise, "position_ids": anywhere, "segment_ids": nowhere}
    return {name: torch.cat([left, inputs[name], right], 1) for name, (left, right) in sides.items()}


@check(KIND, case=cases, kept=st.integers(1, 6))
def causality(subject: LanguageSubject, case: Case, kept: int) -> None:
    """A token sees none that comes after it.

    The model cannot learn to copy the next word from its input, which is not there when it writes.
    """
    kept = min(kept, case.length - 1)
    inputs = subject.inputs(case)
    changed = {**inputs, "embeds": inputs["embeds"].clone()}
    changed["embeds"][:, kept:] = _embeds(subject, case.rows, case.length - kept, case.seed + 1)
    found = subject.checked(subject.part, changed)[:, :kept]
    wanted = subject.checked(subject.part, inputs)[:, :kept]
    expect_close(found, wanted, f"hidden[:, :{kept}] before other tokens", "before these")


@check(KIND, rows=st.integers(2, 3), lengths=lengths, before=paddings, after=paddings, seed=seeds)
def padding_invariance(
    subject: LanguageSubject, rows: int, lengths: list[int], before: int, after: int, seed: int
) -> None:
    """A row gives the same with padding (segment -1) before or after it, and padding gives finite values.

    Rows of different lengths can share a batch, in training and in generation.
    """
    length = lengths[0]
    inputs = {"embeds": _embeds(subject, rows, length, seed), **positions([length], rows)}
    padded = _padded(inputs, before, after, seed + 1)
    found = subject.checked(subject.part, padded)
    expect_finite(found, "hidden")
    wanted = subject.call(subject.part, inputs)
    expect_close(found[:, before : before + length], wanted, "hidden beside padding", "without padding")


def _cannot_pack(subject: LanguageSubject) -> str | None:
    return None if subject.part.spec.packing else "its spec says packing=False"


@check(KIND, unless=_cannot_pack, rows=st.integers(2, 3), lengths=lengths, seed=seeds)
def packing_invariance(subject: LanguageSubject, rows: int, lengths: list[int], seed: int) -> None:
    """Documents packed into one row give what each gives in a row of its own.

    A model learns the same packed, several times faster, and no document reads its neighbour.
    """
    embeds = _embeds(subject, rows, sum(lengths), seed)
    together = subject.checked(subject.part, {"embeds": embeds, **positions(lengths, rows)})
    said = subject.doing
    start = 0
    for number, length in enumerate(lengths):
        own = {"embeds": embeds[:, start : start + length], **positions([length], rows)}
        alone = subject.call(subject.part, own)
        subject.doing = f"{said}, documents of {lengths} tokens in a row"
        expect_close(
            together[:, start : start + length], alone, f"hidden of packed document {number}", "alone"
        )
        start += length


def _cannot_cache(subject: LanguageSubject) -> str | None:
    return None if subject.part.spec.cache else "its spec says cache=False"


calls = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any), min_size=1, max_size=5)


@check(KIND, unless=_cannot_cache, calls=calls, seed=seeds)
def cached_decoding(subject: LanguageSubject, calls: list[tuple[int, int]], seed: int) -> None:
    """Tokens given a few at a time, with a cache, get what one full pass gives them. `calls` are tokens a row.

    What the model writes is what it would have written without the cache, also beside a row that goes on slower.
    """
    part = subject.part
    if subject.window:  # so that what follows has left it behind
        calls = [(subject.window, subject.window), *calls]
    totals = [sum(call[row] for call in calls) for row in range(2)]
    embeds = _embeds(subject, 2, max(totals), seed)
    subject.doing = f"forward with a cache, tokens of two rows in each call: {calls}"
    with torch.no_grad():
        pieces = _step_by_step(part, embeds, calls)
    said = subject.doing
    for row, total in enumerate(totals):
        if total:
            inputs = {"embeds": embeds[[row, row], :total], **positions([total], 2)}
            whole = subject.call(part, inputs)[0]
            subject.doing = said
            expect_close(torch.cat(pieces[row]), whole, f"hidden of row {row} by pieces", "of one full pass")


def _step_by_step(part: Any, embeds: Tensor, calls: list[tuple[int, int]]) -> list[list[Tensor]]:
    """The hidden states of each row's own tokens, call by call; the slower row leaves empty slots behind it."""
    cache, done = part.new_cache(), [0, 0]
    pieces: list[list[Tensor]] = [[], []]
    for call in calls:
        width = max(call)
        given = torch.ones(2, width, embeds.shape[-1])
        position_ids, segment_ids = torch.zeros(2, width, dtype=torch.long), torch.full((2, width), -1)
        for row, count in enumerate(call):
            own = slice(done[row], done[row] + count)
            given[row, :count] = embeds[row, own]
            position_ids[row, :count] = torch.arange(own.start, own.stop)
            segment_ids[row, :count] = 0
            done[row] = own.stop
        hidden = expect_shape(
            part(given, position_ids, segment_ids, cache), "hidden", "(B, T, D)", given.shape
        )
        expect_finite(hidden, "hidden")
        for row, count in enumerate(call):
            pieces[row].append(hidden[row, :count])
    return pieces


@check(KIND, length=st.integers(2, 4), seed=seeds)
def embed_any_shape(subject: LanguageSubject, length: int, seed: int) -> None:
    """Ids of any shape (...) become embeddings (..., D), each its own, those of added tokens too.

    Batches, single tokens and lists of them are embedded by one call.
    """
    part = subject.part
    known = torch.tensor([*range(part.spec.vocab_size), *subject.token_ids.values()])
    generator = torch.Generator().manual_seed(seed)
    for shape in ((), (length,), (2, length), (2, 1, length)):
        ids = known[torch.randint(len(known), shape, generator=generator)]
        subject.doing = f"embed(ids of shape {shape})"
        with torch.no_grad():
            embeds = expect_shape(part.embed(ids), "embeds", "(..., D)", (*shape, part.spec.dim))
            each = [part.embed(index.expand(2, 1))[0] for index in ids.flatten()]
        expect_same(embeds.view(-1, part.spec.dim), torch.cat(each), "embeds", "of each id by itself")


def _has_no_tables(subject: LanguageSubject) -> str | None:
    return "its embedding() is None: no rows of tables" if subject.part.embedding() is None else None


@check(KIND, unless=_has_no_tables)
def embedding_agrees(subject: LanguageSubject) -> None:
    """The rows of `embedding()`, those of added tokens too, are what `embed` gives, and they learn the same from it.

    The fused kernel, which copies rows by itself, feeds and teaches the model what `embed` does.
    """
    part = subject.make()
    ids = torch.tensor([[*range(part.spec.vocab_size), *subject.token_ids.values()]])
    subject.doing = f"embed(ids of shape {tuple(ids.shape)})"
    found, wanted = part.embed(ids), look_up(ids, *part.embedding())
    expect_same(found, wanted, "embeds", "by embedding() alone")
    trained = {name: each for name, each in part.named_parameters() if each.requires_grad}
    of_embed, of_tables = (_gradients(embeds, [*trained.values()]) for embeds in (found, wanted))
    for name, gradient, other in zip(trained, of_embed, of_tables, strict=True):
        expect_close(gradient, other, f"gradient of {name}", "by embedding() alone")


def _gradients(embeds: Tensor, trained: list[Tensor]) -> tuple[Tensor, ...]:
    if not embeds.requires_grad:
        return tuple(torch.zeros_like(each) for each in trained)
    return torch.autograd.grad(weighted_sum(embeds), trained, allow_unused=True, materialize_grads=True)


@check(KIND, rows=st.integers(2, 4), seed=seeds)
def head_agrees(subject: LanguageSubject, rows: int, seed: int) -> None:
    """`head()` gives the weights that `logits` uses, rows of added tokens included.

    Whoever computes words from the weights gets those of the model.
    """
    part, hidden = subject.part, _embeds(subject, rows, 1, seed)[:, 0]
    subject.doing = f"logits(hidden of shape {tuple(hidden.shape)})"
    with torch.no_grad():
        weight, bias, soft_cap, scale = part.head()
        count = max(part.spec.vocab_size, 1 + max(subject.token_ids.values()))
        expect_true(len(weight) >= count, f"len(head().weight)={len(weight)}", f"at least {count}")
        expect_shape(weight, "head().weight", "(vocabulary, D)", (len(weight), part.spec.dim))
        wanted = scale * (hidden @ weight.T + (0 if bias is None else bias))
        if soft_cap is not None:
            wanted = soft_cap * torch.tanh(wanted / soft_cap)
        found = expect_shape(part.logits(hidden), "logits", "(..., vocabulary)", (rows, len(weight)))
    expect_close(found, wanted, "logits", "by head() alone")


def _has_no_rms_norm(subject: LanguageSubject) -> str | None:
    return "its norm_weights are None: no RMS norm" if subject.part.norm_weights is None else None


@check(KIND, unless=_has_no_rms_norm, rows=st.integers(2, 4), seed=seeds)
def norm_agrees(subject: LanguageSubject, rows: int, seed: int) -> None:
    """`norm_weights` are those of `final_norm`: hidden / rms(hidden, eps) * (offset + weight).

    The fused kernels, which compute from the weights, give the dream states that the model gives.
    """
    part = subject.make()
    with torch.no_grad(), seeded(seed):
        for parameter in part.parameters():  # a fresh norm has ones, which would hide a wrong offset
            parameter.add_(torch.randn(parameter.shape))
        weight, eps, offset = part.norm_weights
        expect_shape(weight, "norm_weights.weight", "(D,)", (part.spec.dim,))
        hidden = 0.01 * torch.randn(rows, part.spec.dim)  # small, so that eps counts
        subject.doing = f"final_norm(hidden of shape {tuple(hidden.shape)})"
        wanted = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * (offset + weight)
        found = part.final_norm(hidden)
    expect(tuple(found.shape), tuple(hidden.shape), "normed.shape", "(..., D)")
    expect_close(found, wanted, "normed", "by norm_weights alone")
