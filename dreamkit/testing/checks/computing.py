"""Checks of what a part computes."""

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
from dreamkit.testing.subject import FLOATS, Case, Inputs, Subject, seeded
from dreamkit.testing.subject_kinds import KINDS, DecoderSubject, LanguageSubject, positions

SINGLE_TOLERANCE = 1e-3  # what float32 may differ from float64, and bfloat16 may not


@check(*KINDS, case=cases)
def spec_agrees(subject: Subject, case: Case) -> None:
    """What a part gives has the shape that its spec says, and is finite.

    Parts that `dreamkit check` finds to fit each other do fit, hours later, in training.
    """
    for inputs in (subject.inputs(case), *subject.extremes(case)):
        expect_finite(subject.checked(subject.part, inputs), subject.output)
        if isinstance(subject, DecoderSubject):
            subject.doing = subject.doing.replace(subject.method, "loss", 1)
            with torch.no_grad():
                loss_N = subject.loss_N(subject.part, inputs)
            expect_finite(expect_shape(loss_N, "loss", "(N,)", (case.rows,)), "loss")


@check(*KINDS, seed=st.integers(0, 999))
def batch_of_one(subject: Subject, seed: int) -> None:
    """The smallest input, one row, gives what the same row gives twice in a batch.

    The last batch of an epoch, and a single prompt, do not crash or change.
    """
    inputs = subject.inputs(Case(1, 2, seed))
    twice = {name: tensor.repeat_interleave(2, 0) for name, tensor in inputs.items()}
    wanted = subject.call(subject.part, twice)[:1]
    found = subject.call(subject.part, inputs)
    expect_close(found, wanted, f"{subject.output} of one row", "of the same row twice")


@check(*KINDS, case=cases)
def batch_invariance(subject: Subject, case: Case) -> None:
    """A row gives the same whatever stands beside it in the batch.

    Results do not depend on the batch size, and evaluation in batches is evaluation.
    """
    inputs = subject.inputs(case)
    together = subject.call(subject.part, inputs)
    for row in range(case.rows):
        company = {name: tensor[[row, row]] for name, tensor in inputs.items()}
        alone = subject.call(subject.part, company)
        expect_close(together[row], alone[0], f"{subject.output}[{row}] beside others", "by itself")


@check(*KINDS, case=cases)
def determinism(subject: Subject, case: Case) -> None:
    """In evaluation mode, the same input gives the same output to the bit.

    A result can be repeated; dropout is off where it must be.
    """
    inputs = subject.inputs(case)
    first = subject.call(subject.part, inputs, seed=None)
    second = subject.call(subject.part, inputs, seed=None)
    expect_same(second, first, f"{subject.output} the second time", "the first time")


@check(*KINDS, case=cases)
def inputs_unchanged(subject: Subject, case: Case) -> None:
    """A part leaves the tensors it is given as they are.

    What else reads them, such as the loss or another part, computes with the right values.
    """
    inputs = subject.inputs(case)
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    subject.call(subject.part, inputs, own=True)
    for name, tensor in inputs.items():
        expect_same(tensor, before[name], f"{name} after the call", "before it")


@check(*KINDS, case=cases)
def state_dict_round_trip(subject: Subject, case: Case) -> None:
    """The state dict, written and read back into a part with other weights, gives the same output to the bit.

    A checkpoint holds all that was learned.
    """
    inputs = subject.inputs(case)
    one, other = subject.make(seed=0), subject.make(seed=7)
    held = {name: tensor.clone().contiguous() for name, tensor in one.state_dict().items()}
    subject.doing = "load_state_dict(state_dict of another part)"
    other.load_state_dict(load(save(held)), strict=True)
    wanted = subject.call(one, inputs)
    found = subject.call(other, inputs)
    expect_same(found, wanted, f"{subject.output} after loading", "before saving")


@check(*KINDS, case=cases)
def dtype_kept(subject: Subject, case: Case) -> None:
    """In float64, float32 and bfloat16, a part computes in that dtype, gives it, and has a loss; under autocast too.

    Training in bfloat16 takes the memory it should, and what is compared in float64 is not float32 in disguise.
    """
    part, outputs = subject.make(), {}
    for dtype in FLOATS:
        inputs = subject.inputs(case, dtype)
        outputs[dtype] = subject.call(part.to(dtype), inputs)
        expect(outputs[dtype].dtype, dtype, f"{subject.output}.dtype")
        expect_finite(outputs[dtype], subject.output)
        subject.say(inputs, "the loss after ")
        _has_loss(subject, part, inputs)
    single, double = outputs[torch.float32].double(), outputs[torch.float64]
    expect_close(single, double, f"{subject.output} in float32", "in float64", SINGLE_TOLERANCE)
    is_rounded = torch.equal(double.bfloat16().double(), double)
    expect_true(
        not is_rounded, f"{subject.output} in float64 has the digits of bfloat16", "computed in float64"
    )
    part, inputs = subject.make(), subject.inputs(case)
    subject.say(inputs, "with autocast to bfloat16, the loss after ")
    with torch.autocast("cpu", torch.bfloat16):
        _has_loss(subject, part, inputs)


def _has_loss(subject: Subject, part: Any, inputs: Inputs) -> None:
    with torch.no_grad(), seeded(0):
        expect_finite(subject.loss(part, inputs), "the loss")


@check(*KINDS, case=cases)
def device_kept(subject: Subject, case: Case) -> None:
    """Moved to another device (here `meta`), a part computes there, its loss too, and copies nothing back.

    It runs on a GPU, and never makes it wait for the processor.
    """
    inputs = {name: tensor.to("meta") for name, tensor in subject.inputs(case).items()}
    part = subject.make().to("meta")
    subject.say(inputs)
    with torch.no_grad():
        expect(subject.compute(part, inputs).device, torch.device("meta"), f"{subject.output}.device")
        subject.say(inputs, "the loss after ")
        expect(subject.loss(part, inputs).device, torch.device("meta"), "loss.device")


def _has_no_library(subject: Subject) -> str | None:
    _, wanted = _beside_library(subject, Case(2, 2, 0))
    return "its library_forward() gives None: no library is behind it" if wanted is None else None


@check(*WITH_SOURCE, unless=_has_no_library, case=cases)
def library_agrees(subject: Subject, case: Case) -> None:
    """The part computes what the library behind it computes by itself from the same input.

    Pretrained weights give in dreamkit what they gave where they were trained.
    """
    found, wanted = _beside_library(subject, case)
    assert wanted is not None, "where it gives nothing, this check is skipped"
    expect_close(found, wanted, "output", "library_forward's")


def _beside_library(subject: Subject, case: Case) -> tuple[Tensor, Tensor | None]:
    """What the part gives, and what its library does."""
    if isinstance(subject, LanguageSubject):
        return _words_beside_library(subject, case)
    inputs = subject.inputs(case)
    found = subject.call(subject.part, inputs)
    subject.doing = subject.doing.replace(subject.method, "library_forward", 1)
    with torch.no_grad():
        if not isinstance(subject, DecoderSubject):
            return found, subject.part.library_forward(*inputs.values())
        condition, extras = subject.condition(inputs), subject.extras(case.rows)
        return found, subject.part.library_forward(inputs["latents"], inputs["timesteps"], condition, extras)


def _words_beside_library(subject: LanguageSubject, case: Case) -> tuple[Tensor, Tensor | None]:
    """Logits of tokens, as the library's own masks and positions are in question; more than a sliding window holds."""
    part = subject.make_as_built()
    length = case.length + subject.window
    generator = torch.Generator().manual_seed(case.seed)
    ids = torch.randint(part.spec.vocab_size, (case.rows, length), generator=generator)
    subject.doing = f"library_forward(ids of shape {tuple(ids.shape)})"
    given = positions([length], case.rows)
    with torch.no_grad():
        hidden = part(part.embed(ids), given["position_ids"], given["segment_ids"])
        return part.logits(part.final_norm(hidden)), part.library_forward(ids)
