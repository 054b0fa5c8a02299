"""Checks of a language model's embedding, final norm and head.

D width.
"""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import count
from dreamkit.kernels.assemble_embeddings import look_up
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect_close, expect_same, expect_shape, expect_true
from dreamkit.testing.part_subject import seeded, weighted_sum
from dreamkit.testing.subject_kinds import LanguageSubject

KIND = "language_model"
seeds = st.integers(0, 999)


@check(KIND, length=st.integers(2, 4), seed=seeds)
def embed_any_shape(subject: LanguageSubject, length: int, seed: int) -> None:
    """`embed` takes ids of any shape (...) and returns embeddings (..., D), also of added tokens.

    One method serves batches, rows and single tokens.
    """
    part = subject.part
    known = torch.tensor([*range(part.spec.vocab_size), *subject.token_ids.values()])
    generator = torch.Generator().manual_seed(seed)
    for shape in ((), (length,), (2, length), (2, 1, length)):
        ids = known[torch.randint(len(known), shape, generator=generator)]
        subject.call_text = f"embed(ids of shape {shape})"
        with torch.no_grad():
            embeds = expect_shape(part.embed(ids), "embeds", "(..., D)", (*shape, part.spec.dim))
            each = [part.embed(index.expand(2, 1))[0] for index in ids.flatten()]
        expect_same(embeds.view(-1, part.spec.dim), torch.cat(each), "embeds", "those of each id by itself")


def _has_no_tables(subject: LanguageSubject) -> str | None:
    return (
        "its embedding() returns None: `embed` does more than read a table"
        if subject.part.embedding() is None
        else None
    )


@check(KIND, unless=_has_no_tables)
def embedding_agrees(subject: LanguageSubject) -> None:
    """The tables of `embedding()` give the same embeddings and gradients as `embed`, also of added tokens.

    The fused kernel, which reads the tables itself, gives the model the same input and the same training.
    """
    part = subject.make()
    ids = torch.tensor([[*range(part.spec.vocab_size), *subject.token_ids.values()]])
    subject.call_text = f"embed(ids of shape {tuple(ids.shape)})"
    actual, expected = part.embed(ids), look_up(ids, *part.embedding())
    expect_same(actual, expected, "embeds", "the rows of embedding()")
    trained = {name: each for name, each in part.named_parameters() if each.requires_grad}
    of_embed, of_tables = (_gradients(embeds, [*trained.values()]) for embeds in (actual, expected))
    for name, gradient, other in zip(trained, of_embed, of_tables, strict=True):
        expect_close(gradient, other, f"gradient of {name}", "its gradient through embedding()")


def _gradients(embeds: Tensor, trained: list[Tensor]) -> tuple[Tensor, ...]:
    if not embeds.requires_grad:
        return tuple(torch.zeros_like(each) for each in trained)
    return torch.autograd.grad(weighted_sum(embeds), trained, allow_unused=True, materialize_grads=True)


@check(KIND, rows=st.integers(2, 4), seed=seeds)
def head_agrees(subject: LanguageSubject, rows: int, seed: int) -> None:
    """`head()` returns the weights that `logits` uses, with the rows of added tokens.

    Code that computes logits from the weights, such as the chunked loss, gets the model's own logits.
    """
    part, hidden = subject.part, subject.embeds(rows, 1, seed)[:, 0]
    subject.call_text = f"logits(hidden of shape {tuple(hidden.shape)})"
    with torch.no_grad():
        weight, bias, soft_cap, scale = part.head()
        least = max(part.spec.vocab_size, 1 + max(subject.token_ids.values()))
        expect_true(
            len(weight) >= least, f"{len(weight)}", f"head().weight with at least {count(least, 'row')}"
        )
        expect_shape(weight, "head().weight", "(vocabulary, D)", (len(weight), part.spec.dim))
        expected = scale * (hidden @ weight.T + (0 if bias is None else bias))
        if soft_cap is not None:
            expected = soft_cap * torch.tanh(expected / soft_cap)
        actual = expect_shape(part.logits(hidden), "logits", "(..., vocabulary)", (rows, len(weight)))
    expect_close(actual, expected, "logits", "those computed from head()")


def _has_no_rms_norm(subject: LanguageSubject) -> str | None:
    return (
        "its norm_weights are None: its final norm is not an RMS norm"
        if subject.part.norm_weights is None
        else None
    )


@check(KIND, unless=_has_no_rms_norm, rows=st.integers(2, 4), seed=seeds)
def norm_agrees(subject: LanguageSubject, rows: int, seed: int) -> None:
    """`final_norm` equals hidden / rms(hidden, eps) * (offset + weight) with the values of `norm_weights`.

    The fused kernels, which compute from these values, give the model's own dream states.
    """
    part = subject.make()
    with torch.no_grad(), seeded(seed):
        for parameter in part.parameters():  # the initial ones of a norm would hide a wrong offset
            parameter.add_(torch.randn(parameter.shape))
        weight, eps, offset = part.norm_weights
        expect_shape(weight, "norm_weights.weight", "(D,)", (part.spec.dim,))
        hidden = 0.01 * torch.randn(rows, part.spec.dim)  # small, so that eps matters
        subject.call_text = f"final_norm(hidden of shape {tuple(hidden.shape)})"
        expected = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * (offset + weight)
        actual = part.final_norm(hidden)
    expect_shape(actual, "normed", "(..., D)", hidden.shape)
    expect_close(actual, expected, "normed", "that computed from norm_weights")
