"""Checks of a part's computation."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import (
    expect,
    expect_close,
    expect_finite,
    expect_same,
    expect_shape,
    expect_true,
)
from dreamkit.testing.part_subject import FLOATS, Case, Inputs, PartSubject, seeded
from dreamkit.testing.subject_kinds import PARTS, DecoderSubject, LanguageSubject, positions

SINGLE_TOLERANCE = 1e-3  # between float32 and float64; bfloat16 differs by more


@check(*PARTS, case=cases)
def spec_agrees(subject: PartSubject, case: Case) -> None:
    """A part's output is finite and has the shape in its spec.

    Parts that pass `dreamkit check` still fit hours later, in training.
    """
    for inputs in (subject.inputs(case), *subject.extremes(case)):
        expect_finite(subject.call_with_shape(subject.part, inputs), subject.output)
        if isinstance(subject, DecoderSubject):
            subject.call_text = subject.call_text.replace(subject.method, "loss", 1)
            with torch.no_grad():
                loss_N = subject.loss_N(subject.part, inputs)
            expect_finite(expect_shape(loss_N, "loss", "(N,)", (case.rows,)), "loss")


@check(*PARTS, seed=st.integers(0, 999))
def batch_of_one(subject: PartSubject, seed: int) -> None:
    """A batch of one row gives the same output as a batch that holds this row twice.

    The last batch of an epoch and a single prompt neither crash nor change.
    """
    inputs = subject.inputs(Case(1, 2, seed))
    twice = {name: tensor.repeat_interleave(2, 0) for name, tensor in inputs.items()}
    expected = subject.call(subject.part, twice)[:1]
    actual = subject.call(subject.part, inputs)
    expect_close(actual, expected, f"{subject.output} of one row", f"{subject.output} of the row twice")


@check(*PARTS, case=cases)
def batch_invariance(subject: PartSubject, case: Case) -> None:
    """The output of a row does not depend on the other rows of the batch.

    Results, and so evaluations, do not depend on the batch size.
    """
    inputs = subject.inputs(case)
    together = subject.call(subject.part, inputs)
    for row in range(case.rows):
        repeated = {name: tensor[[row, row]] for name, tensor in inputs.items()}
        alone = subject.call(subject.part, repeated)
        name = f"{subject.output}[{row}]"
        expect_close(together[row], alone[0], f"{name} beside others", f"{name} by itself")


@check(*PARTS, case=cases)
def determinism(subject: PartSubject, case: Case) -> None:
    """In evaluation mode, the same input gives bitwise identical output.

    Results can be repeated, and dropout is off during evaluation.
    """
    inputs = subject.inputs(case)
    first = subject.call(subject.part, inputs, seed=None)
    second = subject.call(subject.part, inputs, seed=None)
    expect_same(second, first, f"{subject.output} of the second call", "those of the first call")


@check(*PARTS, case=cases)
def inputs_unchanged(subject: PartSubject, case: Case) -> None:
    """A part does not change its input tensors.

    The loss and other parts, which read the same tensors, compute with the right values.
    """
    inputs = subject.inputs(case)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    subject.call(subject.part, inputs, copy=False)
    for name, tensor in inputs.items():
        expect_same(tensor, before[name], f"{name} after the call", f"{name} before it")


@check(*PARTS, case=cases)
def state_dict_round_trip(subject: PartSubject, case: Case) -> None:
    """A part that loads another part's saved state dict gives bitwise identical output.

    A checkpoint holds everything that was trained.
    """
    inputs = subject.inputs(case)
    saved, loaded = subject.make(seed=0), subject.make(seed=7)
    state = {name: tensor.clone().contiguous() for name, tensor in saved.state_dict().items()}
    subject.call_text = "load_state_dict(state_dict of another part)"
    loaded.load_state_dict(load(save(state)), strict=True)
    expected = subject.call(saved, inputs)
    actual = subject.call(loaded, inputs)
    expect_same(actual, expected, f"{subject.output} after loading", "those before saving")


@check(*PARTS, case=cases)
def dtype_kept(subject: PartSubject, case: Case) -> None:
    """A part computes its output and loss in float64, float32 or bfloat16, whichever it has, and runs under autocast.

    Training in bfloat16 saves the memory that it should, and a comparison in float64 really uses float64.
    """
    part, outputs = subject.make(), {}
    for dtype in FLOATS:
        inputs = subject.inputs(case, dtype)
        outputs[dtype] = subject.call(part.to(dtype), inputs)
        expect(outputs[dtype].dtype, dtype, f"{subject.output}.dtype")
        expect_finite(outputs[dtype], subject.output)
        subject.describe_call(inputs, "the loss after ")
        _expect_loss(subject, part, inputs)
    single, double = outputs[torch.float32].double(), outputs[torch.float64]
    names = f"{subject.output} in float32", f"{subject.output} in float64"
    expect_close(single, double, *names, SINGLE_TOLERANCE)
    is_rounded = torch.equal(double.bfloat16().double(), double)
    expect_true(not is_rounded, "values rounded to bfloat16", f"float64 precision of {subject.output}")
    part, inputs = subject.make(), subject.inputs(case)
    subject.describe_call(inputs, "with autocast to bfloat16, the loss after ")
    with torch.autocast("cpu", torch.bfloat16):
        _expect_loss(subject, part, inputs)


def _expect_loss(subject: PartSubject, part: Any, inputs: Inputs) -> None:
    with torch.no_grad(), seeded(0):
        expect_finite(subject.loss(part, inputs), "the loss")


@check(*PARTS, case=cases)
def device_kept(subject: PartSubject, case: Case) -> None:
    """A part on another device (here `meta`) computes its output and loss there, and copies nothing back.

    It runs on a GPU, and the GPU never waits for the CPU.
    """
    inputs = {name: tensor.to("meta") for name, tensor in subject.inputs(case).items()}
    part = subject.make().to("meta")
    subject.describe_call(inputs)
    with torch.no_grad():
        expect(subject.compute(part, inputs).device, torch.device("meta"), f"{subject.output}.device")
        subject.describe_call(inputs, "the loss after ")
        expect(subject.loss(part, inputs).device, torch.device("meta"), "loss.device")


def _has_no_library(subject: PartSubject) -> str | None:
    _, expected = _with_library(subject, Case(2, 2, 0))
    return (
        "its library_forward() returns None: there is no library to compare with"
        if expected is None
        else None
    )


@check(*WITH_SOURCE, unless=_has_no_library, case=cases)
def library_agrees(subject: PartSubject, case: Case) -> None:
    """A part's output equals that of the library model behind it.

    Pretrained weights give the same results in dreamkit as in their own library.
    """
    actual, expected = _with_library(subject, case)
    assert expected is not None, "this check is skipped if library_forward returns None"
    expect_close(actual, expected, "output", "output of library_forward")


def _with_library(subject: PartSubject, case: Case) -> tuple[Tensor, Tensor | None]:
    """Return the part's output, and its library's or None."""
    if isinstance(subject, LanguageSubject):
        return _logits_with_library(subject, case)
    inputs = subject.inputs(case)
    actual = subject.call(subject.part, inputs)
    subject.call_text = subject.call_text.replace(subject.method, "library_forward", 1)
    with torch.no_grad():
        if not isinstance(subject, DecoderSubject):
            return actual, subject.part.library_forward(*inputs.values())
        condition, extras = subject.condition(inputs), subject.extras(case.rows)
        return actual, subject.part.library_forward(inputs["latents"], inputs["timesteps"], condition, extras)


def _logits_with_library(subject: LanguageSubject, case: Case) -> tuple[Tensor, Tensor | None]:
    """Return the logits of token ids, since the library makes masks and positions itself.

    The rows are longer than the sliding window, so that its mask matters.
    """
    part = subject.make_as_built()
    length = case.length + subject.window
    generator = torch.Generator().manual_seed(case.seed)
    ids = torch.randint(part.spec.vocab_size, (case.rows, length), generator=generator)
    subject.call_text = f"library_forward(ids of shape {tuple(ids.shape)})"
    places = positions([length], case.rows)
    with torch.no_grad():
        hidden = part(part.embed(ids), places["position_ids"], places["segment_ids"])
        return part.logits(part.final_norm(hidden)), part.library_forward(ids)
