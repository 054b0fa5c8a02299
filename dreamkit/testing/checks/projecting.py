"""Checks of projectors alone."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch.nn.functional import gelu

from dreamkit.parts.specs import ProjectorSpec
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import expect, expect_close, expect_shape, expect_true, named
from dreamkit.testing.subject import Case, seeded
from dreamkit.testing.subject_kinds import ProjectorSubject

widths = st.integers(1, 9)


@check("projector", in_dim=widths, in_tokens=widths, out_dim=widths, rows=st.integers(2, 3))
def any_neighbours(subject: ProjectorSubject, in_dim: int, in_tokens: int, out_dim: int, rows: int) -> None:
    """Between neighbours of any widths, a projector has the spec that was asked for and keeps to it, or refuses.

    A part is swapped by one line of a recipe, whatever the widths of the others.
    """
    cls, config = type(subject.part), subject.part.config
    asked = {"in_dim": in_dim, "in_tokens": in_tokens, "out_dim": out_dim}
    subject.doing = f"infer_spec(config, {', '.join(f'{name}={width}' for name, width in asked.items())})"
    try:
        spec = cls.infer_spec(config, **asked)
    except ValueError:  # such as a ConfigError: widths it cannot serve
        return
    given = named(type(spec))
    expect_true(isinstance(spec, ProjectorSpec), f"spec is {given}", "a ProjectorSpec")
    for name, width in asked.items():
        expect(getattr(spec, name), width, f"spec.{name}")
    with seeded(0), torch.no_grad():
        part = cls.from_config(config, spec).eval()
        subject.doing = f"forward(tokens of shape {(rows, in_tokens, in_dim)})"
        projected = part(torch.randn(rows, in_tokens, in_dim))
    expect_shape(projected, "projected", "(N, out_tokens, out_dim)", (rows, spec.out_tokens, out_dim))


def _is_not_dense(subject: ProjectorSubject) -> str | None:
    if subject.part.dense_layers() is None:
        return "its dense_layers() gives None: it is more than matrices"
    return None


@check("projector", unless=_is_not_dense, case=cases)
def dense_layers_agree(subject: ProjectorSubject, case: Case) -> None:
    """A projector that gives `dense_layers()` is those matrices with GELU between them, and nothing else.

    The fused kernels, which compute from the matrices, give what the projector gives.
    """
    inputs = subject.inputs(case)
    found = subject.call(subject.part, inputs)
    tokens = inputs["tokens"]
    with torch.no_grad():
        for index, layer in enumerate(subject.part.dense_layers()):
            tokens = layer(gelu(tokens) if index else tokens)
    expect_close(found, tokens, "projected", "by dense_layers() alone")
