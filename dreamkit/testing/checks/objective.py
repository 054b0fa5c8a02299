"""Checks of an image decoder's latents and training objective.

N images, c x h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from dreamkit.errors import did_you_mean
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.parts.sampling import sample_latents
from dreamkit.testing.check import cases, check
from dreamkit.testing.expect import (
    ContractError,
    expect,
    expect_close,
    expect_finite,
    expect_same,
    expect_shape,
    expect_true,
    expect_within,
)
from dreamkit.testing.part_subject import FLOATS, Case, Inputs, generator, seeded
from dreamkit.testing.subject_kinds import DecoderSubject

KIND = "image_decoder"

seeds = st.integers(0, 999)


@check(KIND, rows=st.integers(2, 3), seed=seeds)
def latents_agree(subject: DecoderSubject, rows: int, seed: int) -> None:
    """In every dtype, `encode` returns latents of the shape in the spec and `decode` images in [0, 1].

    Drawn images have the requested size and are not washed out.
    """
    spec = subject.part.spec
    side = spec.image_size
    with seeded(seed):
        targets = torch.rand(rows, 3, side, side) * 2 - 1
    part = subject.make()
    for dtype in FLOATS:
        part.to(dtype)
        subject.call_text = f"encode(targets of shape {tuple(targets.shape)}, {dtype})"
        with torch.no_grad():
            latents = part.encode(targets.to(dtype), generator(seed))
            expect_shape(latents, "latents", "(N, c, h, w)", (rows, *spec.latent_shape((side, side))))
            expect_finite(latents, "latents")
            subject.call_text = f"decode(latents of shape {tuple(latents.shape)}, {dtype})"
            images = part.decode(10 * latents)
        expect_shape(images, "images", "(N, 3, H, W)", (rows, 3, side, side))
        expect_finite(images, "images")
        expect_within(images, "images", 0, 1)


@check(KIND, seed=seeds)
def encode_repeats(subject: DecoderSubject, seed: int) -> None:
    """Generators of one seed give the same latents and the same timesteps.

    A training run can be repeated.
    """
    part, side = subject.part, subject.part.spec.image_size
    targets = torch.zeros(2, 3, side, side)
    subject.call_text = f"encode(targets, generator of seed {seed})"
    with torch.no_grad():
        first, second = (part.encode(targets, generator(seed)) for _ in range(2))
    expect_close(second, first, "latents", "latents of the same seed")
    subject.call_text = f"timesteps(5, generator of seed {seed})"
    first, second = (part.timesteps(5, generator(seed)) for _ in range(2))
    expect_shape(first, "timesteps", "(count,)", (5,))
    expect(second.tolist(), first.tolist(), "timesteps", "of the same seed")


@check(KIND)
def timesteps_device(subject: DecoderSubject) -> None:
    """`timesteps` are on the device of the generator, and depend on it alone, wherever the decoder is.

    The processes that read data sample them, without a GPU.
    """
    expected = subject.part.timesteps(5, generator(0))
    part = subject.make().to("meta")
    subject.call_text = "timesteps(5, generator of seed 0) of a decoder on the meta device"
    actual = part.timesteps(5, generator(0))
    expect(actual.device.type, "cpu", "timesteps.device.type")
    expect(actual.tolist(), expected.tolist(), "timesteps", "of the decoder on the CPU")


def _has_no_posterior(subject: DecoderSubject) -> str | None:
    declared = subject.part.posterior_module is not None or subject.part.has_posterior()
    return None if declared else "its posterior_module is None: it has no posterior"


def _latent_module(part: ImageDecoder) -> nn.Module:
    """Return the submodule that `posterior_module` names; fail if the name or `posterior` is missing."""
    name = part.posterior_module
    if name is None:
        raise ContractError(
            "expected a posterior_module beside posterior, got None, so that latents are never cached; name the "
            "submodule that computes it, or '' for the part itself"
        )
    if not part.has_posterior():
        raise ContractError(
            f"missing posterior, but posterior_module is '{name}'; implement posterior, or set posterior_module to None"
        )
    modules = dict(part.named_modules(remove_duplicate=False))
    if name not in modules:
        children = [child for child, _ in part.named_children()]
        raise ContractError(
            f"expected the name of a submodule of {type(part).__name__} in posterior_module, got '{name}'; "
            f"{did_you_mean(name, children)}"
        )
    return modules[name]


@check(KIND, unless=_has_no_posterior, rows=st.integers(2, 3), seed=seeds)
def posterior_agrees(subject: DecoderSubject, rows: int, seed: int) -> None:
    """`encode` samples from `posterior`, which has no gradient and depends only on the weights in `posterior_module`.

    Cached latents equal those that training would compute.
    """
    part, side = subject.make(), subject.part.spec.image_size
    inside = set(_latent_module(part).parameters())
    with seeded(seed):
        targets = torch.rand(rows, 3, side, side) * 2 - 1
    subject.call_text = f"posterior(targets of shape {tuple(targets.shape)})"
    mean, std = part.posterior(targets)
    for name, tensor in (("mean", mean), ("std", std)):
        if tensor is not None:
            expect_shape(tensor, name, "(N, c, h, w)", (rows, *part.spec.latent_shape((side, side))))
            expect_finite(tensor, name)
            expect(tensor.requires_grad, False, f"{name}.requires_grad")
    expect_true(std is None or bool((std >= 0).all()), "some below 0", "std values of at least 0")
    with torch.no_grad():
        actual, expected = part.encode(targets, generator(seed)), sample_latents(mean, std, generator(seed))
        expect_close(actual, expected, "latents of encode", "(mean + std * noise)")
        for parameter in part.parameters():
            if parameter not in inside:
                parameter.add_(1)
    again = part.posterior(targets)[0]
    name = f"mean after a change of weights outside '{part.posterior_module}'"
    expect_close(again, mean, name, "mean before it")


def _loss(subject: DecoderSubject, part: Any, inputs: Inputs, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the loss (N,) of a network that predicts `predict(target)`."""
    targets: list[Tensor] = []
    add_noise = part.add_noise

    def record(*args: Any, **named: Any) -> Any:
        noisy, target = add_noise(*args, **named)
        targets.append(target)
        return noisy, target

    part.add_noise, part.denoise = record, lambda *args, **named: predict(targets[-1])
    try:
        loss_N = subject.loss_N(part, inputs)
        expect(len(targets), 1, "the number of calls of add_noise in loss")
        return loss_N
    finally:
        del part.add_noise, part.denoise


@check(KIND, case=cases)
def perfect_prediction(subject: DecoderSubject, case: Case) -> None:
    """The loss is 0 if the network predicts exactly the target of `add_noise`.

    The loss measures the error of the network and nothing else.
    """
    inputs = subject.inputs(case)
    subject.call_text = "loss of a prediction equal to the target"
    with torch.no_grad():
        loss_N = _loss(subject, subject.make(), inputs, lambda target: target)
    expect_close(loss_N, torch.zeros(case.rows), "loss", "0")


@check(KIND, case=cases)
def loss_agrees(subject: DecoderSubject, case: Case) -> None:
    """`loss` is the mean squared error of `denoise` against the target of `add_noise`, times a weight of the timestep.

    Reported losses are comparable, and cached latents or noise change nothing.
    """
    part, inputs = subject.make(), subject.inputs(case)
    latents, timesteps = inputs["latents"], inputs["timesteps"]
    with torch.no_grad():
        subject.call_text = "loss of a prediction that is off by 1"
        weight_N = _loss(subject, part, inputs, lambda target: target + 1)
        expect_true(bool((weight_N > 0).all()), f"{weight_N.tolist()}", "a loss of more than 0")
        with seeded(1):  # the noise of `subject.loss_N`
            noise = torch.randn(latents.shape)
        noisy, target = part.add_noise(latents, noise, timesteps)
        expect_shape(noisy, "noisy", "(N, c, h, w)", latents.shape)
        prediction = part.denoise(noisy, timesteps, subject.condition(inputs), subject.extras(case.rows))
        error_N = (prediction - target).square().flatten(1).mean(1)
        subject.call_text = f"loss(latents of shape {tuple(latents.shape)})"
        actual = subject.loss_N(part, inputs)
    expect_close(actual, weight_N * error_N, "loss", "the weighted error of denoise")


def _has_no_float32_modules(subject: DecoderSubject) -> str | None:
    return None if subject.part.spec.float32_modules else "its spec names no float32_modules"


@check(KIND, unless=_has_no_float32_modules)
def float32_kept(subject: DecoderSubject) -> None:
    """In a decoder of half precision, the submodules in `spec.float32_modules` keep their exact float32 weights.

    SDXL's autoencoder, which overflows in half precision, draws images instead of black squares.
    """
    for dtype in (torch.bfloat16, torch.float16):
        part = subject.make()
        subject.call_text = f"part.to({dtype})"
        part.to(dtype)
        for name in part.spec.float32_modules:
            before = subject.part.get_submodule(name).state_dict()
            for key, tensor in part.get_submodule(name).state_dict().items():
                if tensor.is_floating_point():
                    expect(tensor.dtype, torch.float32, f"{name}.{key}.dtype")
                    expect_same(tensor, before[key], f"{name}.{key}", "its value before")
