"""Checks of how a part learns, and lets others learn."""

from __future__ import annotations

from dreamkit.model.adapters import adapt, adapter_root, is_adapter
from dreamkit.recipe.sections import WITH_SOURCE, AdapterSection
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import expect, expect_close, expect_finite, expect_true
from dreamkit.testing.subject import Case, Subject
from dreamkit.testing.subject_kinds import KINDS


@check(*KINDS, case=cases)
def gradients_reach_trainable(subject: Subject, case: Case) -> None:
    """The loss's gradient reaches every parameter of `trainable_parameters()`, and no other.

    Nothing that a recipe trains silently stays as it was, and several devices do not wait for what never comes.
    """
    part = subject.make().requires_grad_(False)
    trainable = {id(parameter) for parameter in part.trainable_parameters()}
    for parameter in part.parameters():
        parameter.requires_grad_(id(parameter) in trainable)
    subject.backward(part, subject.inputs(case))
    for name, parameter in part.named_parameters():
        if id(parameter) in trainable:
            expect_true(
                parameter.grad is not None, f"{name} has no gradient", "reached, or not called trainable"
            )
            expect_finite(parameter.grad, f"the gradient of {name}")
        else:
            expect_true(
                parameter.grad is None, f"{name}, which is not trainable, has a gradient", "left alone"
            )


@check(*KINDS, case=cases)
def frozen_stays_frozen(subject: Subject, case: Case) -> None:
    """A part whose parameters are frozen keeps them so through a backward pass, in training and in evaluation mode.

    Stage I trains the projectors and the queries, and nothing else.
    """
    part = subject.make().requires_grad_(False)
    for mode in (True, False):
        subject.backward(part.train(mode), subject.inputs(case))
        for name, parameter in part.named_parameters():
            expect(parameter.requires_grad, False, f"{name}.requires_grad")
            expect_true(parameter.grad is None, f"{name}, which is frozen, has a gradient", "left alone")


@check(*KINDS, case=cases)
def gradients_reach_input(subject: Subject, case: Case) -> None:
    """Through a frozen part the loss's gradient reaches every row of what went in.

    What comes before it learns: the denoising loss goes back through a frozen decoder into the dream queries.
    """
    part = subject.make().requires_grad_(False)
    inputs = subject.inputs(case)
    gradients = subject.backward(part, inputs)
    for name in subject.learned_from:
        if name not in inputs:
            continue
        expect_true(name in gradients, f"{name} has no gradient", "reached by the loss")
        expect_finite(gradients[name], f"the gradient of {name}")
        for row, gradient in enumerate(gradients[name]):
            expect_true(gradient.abs().sum() > 0, f"the gradient of {name}[{row}] is 0", "different from 0")


@check(*KINDS, case=cases)
def gradient_checkpointing(subject: Subject, case: Case) -> None:
    """`enable_gradient_checkpointing()` changes no gradient.

    Saving memory does not change what is learned.
    """
    inputs, found = subject.inputs(case), []
    for recompute in (False, True):
        part = subject.make().train()
        if recompute:
            part.enable_gradient_checkpointing()
        gradients = subject.backward(part, inputs)
        gradients |= {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
        found.append(gradients)
    plain_gradients, recomputed = found
    expect(sorted(recomputed), sorted(plain_gradients), "what has a gradient with checkpointing")
    for name, gradient in recomputed.items():
        expect_close(gradient, plain_gradients[name], f"gradient of {name} with checkpointing", "without")


def _names_no_layers(subject: Subject) -> str | None:
    return None if subject.part.adapter_targets else "its adapter_targets are empty: it cannot be adapted"


@check(*WITH_SOURCE, unless=_names_no_layers, case=cases)
def adapters_attach(subject: Subject, case: Case) -> None:
    """A LoRA adapter finds each of `adapter_targets`, changes nothing before it has learned, and learns.

    `adapters: [{target: ...}]` in a recipe trains what the part's author meant.
    """
    inputs, part = subject.inputs(case), subject.make()
    before = subject.call(part, inputs)
    names = [f".{name}" for name, _ in adapter_root(part).named_modules()]
    for target in part.adapter_targets:
        found = any(name.endswith(f".{target}") for name in names)
        expect_true(
            found,
            f"no module of {part.adapter_root or 'the part'} is called '{target}'",
            "there, as adapter_targets names it",
        )
    subject.doing = f"adapter on {', '.join(part.adapter_targets)}"
    adapt(part, AdapterSection(subject.kind, rank=2, alpha=4))  # type: ignore[arg-type]
    expect_close(subject.call(part, inputs), before, f"{subject.output} with a fresh adapter", "without")
    subject.backward(part, inputs)
    for name, parameter in part.named_parameters():
        if is_adapter(name):
            expect_true(parameter.grad is not None, f"{name} has no gradient", "reached by the loss")
