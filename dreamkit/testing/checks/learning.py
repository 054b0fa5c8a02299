"""Checks of gradients and adapters."""

from __future__ import annotations

from torch import Tensor

from dreamkit.model.adapters import adapt, adapter_root, is_adapter
from dreamkit.recipe.sections import WITH_SOURCE, AdapterSection
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import expect, expect_close, expect_finite, expect_true
from dreamkit.testing.part_subject import Case, PartSubject
from dreamkit.testing.subject_kinds import PARTS


@check(*PARTS, case=cases)
def gradients_reach_trainable(subject: PartSubject, case: Case) -> None:
    """The gradient of the loss reaches every parameter of `trainable_parameters()` and no other.

    Every parameter that a recipe trains changes, and no device waits for a gradient that never arrives.
    """
    part = subject.make().requires_grad_(False)
    trainable = {id(parameter) for parameter in part.trainable_parameters()}
    for parameter in part.parameters():
        parameter.requires_grad_(id(parameter) in trainable)
    subject.backward(part, subject.inputs(case))
    for name, parameter in part.named_parameters():
        if id(parameter) in trainable:
            _expect_gradient(parameter, f"{name} of trainable_parameters()")
            expect_finite(parameter.grad, f"the gradient of {name}")
        else:
            _expect_no_gradient(parameter, f"{name}, not one of trainable_parameters()")


@check(*PARTS, case=cases)
def frozen_stays_frozen(subject: PartSubject, case: Case) -> None:
    """Frozen parameters stay frozen in a backward pass, in training mode and in evaluation mode.

    Stage I trains only the projectors and the dream queries.
    """
    part = subject.make().requires_grad_(False)
    for mode in (True, False):
        subject.backward(part.train(mode), subject.inputs(case))
        for name, parameter in part.named_parameters():
            expect(parameter.requires_grad, False, f"{name}.requires_grad")
            _expect_no_gradient(parameter, f"frozen {name}")


@check(*PARTS, case=cases)
def gradients_reach_input(subject: PartSubject, case: Case) -> None:
    """The gradient of the loss reaches every row of the input through a frozen part.

    Earlier parts are trained: the denoising loss flows back through a frozen decoder into the dream queries.
    """
    part = subject.make().requires_grad_(False)
    inputs = subject.inputs(case)
    gradients = subject.backward(part, inputs)
    for name in subject.differentiable:
        if name not in inputs:
            continue
        expect_true(name in gradients, "none", f"a gradient of {name}")
        expect_finite(gradients[name], f"the gradient of {name}")
        for row, gradient in enumerate(gradients[name]):
            expect_true(gradient.abs().sum() > 0, "0", f"a gradient of {name}[{row}] that is not 0")


@check(*PARTS, case=cases)
def gradient_checkpointing(subject: PartSubject, case: Case) -> None:
    """`enable_gradient_checkpointing()` changes no gradient.

    Saving memory does not change training.
    """
    inputs, both = subject.inputs(case), []
    for recompute in (False, True):
        part = subject.make().train()
        if recompute:
            part.enable_gradient_checkpointing()
        gradients = subject.backward(part, inputs)
        gradients |= {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
        both.append(gradients)
    plain_gradients, recomputed = both
    expect(sorted(recomputed), sorted(plain_gradients), "the names with a gradient, with checkpointing")
    for name, gradient in recomputed.items():
        expect_close(
            gradient, plain_gradients[name], f"gradient of {name} with checkpointing", "that without"
        )


def _names_no_layers(subject: PartSubject) -> str | None:
    return None if subject.part.adapter_targets else "its adapter_targets are empty: it cannot be adapted"


@check(*WITH_SOURCE, unless=_names_no_layers, case=cases)
def adapters_attach(subject: PartSubject, case: Case) -> None:
    """LoRA finds a module for each of `adapter_targets`; a new adapter changes no output and is trained by the loss.

    `adapters: [{target: ...}]` in a recipe trains the layers that the part's author chose.
    """
    inputs, part = subject.inputs(case), subject.make()
    before = subject.call(part, inputs)
    names = [f".{name}" for name, _ in adapter_root(part).named_modules()]
    for target in part.adapter_targets:
        expect_true(
            any(name.endswith(f".{target}") for name in names),
            "none",
            f"a module of {part.adapter_root or 'the part'} called '{target}', one of adapter_targets",
        )
    subject.call_text = f"adapter on {', '.join(part.adapter_targets)}"
    adapt(part, AdapterSection(subject.kind, rank=2, alpha=4))  # type: ignore[arg-type]
    expect_close(subject.call(part, inputs), before, f"{subject.output} with a new adapter", "those without")
    subject.backward(part, inputs)
    for name, parameter in part.named_parameters():
        if is_adapter(name):
            _expect_gradient(parameter, name)


def _expect_gradient(parameter: Tensor, name: str) -> None:
    expect_true(parameter.grad is not None, "none", f"a gradient of {name}")


def _expect_no_gradient(parameter: Tensor, name: str) -> None:
    expect_true(parameter.grad is None, "one", f"no gradient of {name}")
