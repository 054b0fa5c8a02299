"""Checks of projectors."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch.nn.functional import gelu

from dreamkit.parts.specs import ProjectorSpec
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import expect, expect_close, expect_shape, expect_true, named
from dreamkit.testing.part_subject import Case, seeded
from dreamkit.testing.subject_kinds import ProjectorSubject

widths = st.integers(1, 9)


@check("projector", in_dim=widths, in_tokens=widths, out_dim=widths, rows=st.integers(2, 3))
def any_neighbours(subject: ProjectorSubject, in_dim: int, in_tokens: int, out_dim: int, rows: int) -> None:
    """A projector takes the widths of any neighbours and follows its spec, or `infer_spec` raises a ValueError.

    One line of a recipe swaps a part, whatever the widths of the others.
    """
    widths = {"in_dim": in_dim, "in_tokens": in_tokens, "out_dim": out_dim}
    try:
        spec = subject.infer_spec(widths)
    except ValueError:  # such as a ConfigError for these widths
        return
    expect_true(isinstance(spec, ProjectorSpec), named(type(spec)), "a ProjectorSpec from infer_spec")
    for name, width in widths.items():
        expect(getattr(spec, name), width, f"spec.{name}")
    with seeded(0), torch.no_grad():
        part = type(subject.part).from_config(subject.part.config, spec).eval()
        subject.call_text = f"forward(tokens of shape {(rows, in_tokens, in_dim)})"
        projected = part(torch.randn(rows, in_tokens, in_dim))
    expect_shape(projected, "projected", "(N, out_tokens, out_dim)", (rows, spec.out_tokens, out_dim))


def _is_not_dense(subject: ProjectorSubject) -> str | None:
    if subject.part.dense_layers() is None:
        return "its dense_layers() returns None: it is more than matrices"
    return None


@check("projector", unless=_is_not_dense, case=cases)
def dense_layers_agree(subject: ProjectorSubject, case: Case) -> None:
    """A projector with `dense_layers()` computes exactly these matrices with GELU between them.

    The fused kernels, which compute from the matrices, give the projector's own output.
    """
    inputs = subject.inputs(case)
    actual = subject.call(subject.part, inputs)
    tokens = inputs["tokens"]
    with torch.no_grad():
        for index, layer in enumerate(subject.part.dense_layers()):
            tokens = layer(gelu(tokens) if index else tokens)
    expect_close(actual, tokens, "projected", "that computed from dense_layers()")
