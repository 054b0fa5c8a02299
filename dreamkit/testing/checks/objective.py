"""Checks of an image decoder's latents and of its training objective.

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
from dreamkit.testing.subject import FLOATS, Case, Inputs, generator, seeded
from dreamkit.testing.subject_kinds import DecoderSubject

KIND = "image_decoder"

seeds = st.integers(0, 999)


@check(KIND, rows=st.integers(2, 3), seed=seeds)
def latents_agree(subject: DecoderSubject, rows: int, seed: int) -> None:
    """`encode` gives latents of the shape that the spec says, `decode` pictures in [0, 1], in every dtype.

    Pictures are drawn at the size that was asked for, and are not washed out.
    """
    spec = subject.part.spec
    side = spec.image_size
    with seeded(seed):
        targets = torch.rand(rows, 3, side, side) * 2 - 1
    part = subject.make()
    for dtype in FLOATS:
        part.to(dtype)
        subject.doing = f"encode(targets of shape {tuple(targets.shape)}, {dtype})"
        with torch.no_grad():
            latents = part.encode(targets.to(dtype), generator(seed))
            expect_shape(latents, "latents", "(N, c, h, w)", (rows, *spec.latent_shape((side, side))))
            expect_finite(latents, "latents")
            subject.doing = f"decode(latents of shape {tuple(latents.shape)}, {dtype})"
            images = part.decode(10 * latents)
        expect_shape(images, "images", "(N, 3, H, W)", (rows, 3, side, side))
        expect_finite(images, "images")
        expect_within(images, "images", 0, 1)


@check(KIND, seed=seeds)
def encode_repeats(subject: DecoderSubject, seed: int) -> None:
    """The same generator gives the same latents and the same timesteps.

    A training run can be repeated.
    """
    part, side = subject.part, subject.part.spec.image_size
    targets = torch.zeros(2, 3, side, side)
    subject.doing = f"encode(targets, generator of seed {seed})"
    with torch.no_grad():
        first, second = (part.encode(targets, generator(seed)) for _ in range(2))
    expect_close(second, first, "latents", "with a generator of the same seed")
    subject.doing = f"timesteps(5, generator of seed {seed})"
    first, second = (part.timesteps(5, generator(seed)) for _ in range(2))
    expect_shape(first, "timesteps", "(count,)", (5,))
    expect(second.tolist(), first.tolist(), "timesteps", "with a generator of the same seed")


def _tells_no_posterior(subject: DecoderSubject) -> str | None:
    tells = subject.part.posterior_module is not None or _gives_posterior(subject.part)
    return None if tells else "its posterior_module is None: it gives no posterior"


def _gives_posterior(part: ImageDecoder) -> bool:
    return type(part).posterior is not ImageDecoder.posterior


def _latent_module(part: ImageDecoder) -> nn.Module:
    """The submodule that `posterior_module` names, of a part that has one, and a posterior with it."""
    root = part.posterior_module
    if root is None:
        raise ContractError(
            "posterior is given, but posterior_module is None, so that no latents are cached; name the submodule whose "
            "weights alone decide on it, or '' for the part itself"
        )
    if not _gives_posterior(part):
        raise ContractError(
            f"posterior_module is '{root}', but posterior is not given; write it, or name no root"
        )
    modules = dict(part.named_modules(remove_duplicate=False))
    if root not in modules:
        children = [name for name, _ in part.named_children()]
        raise ContractError(
            f"posterior_module names '{root}', which {type(part).__name__} has not; {did_you_mean(root, children)}"
        )
    return modules[root]


@check(KIND, unless=_tells_no_posterior, rows=st.integers(2, 3), seed=seeds)
def posterior_agrees(subject: DecoderSubject, rows: int, seed: int) -> None:
    """`encode` draws from `posterior`, which gives no gradient and on which only weights in `posterior_module` decide.

    Latents that were computed once and read from disk are those that training would have made.
    """
    part, side = subject.make(), subject.part.spec.image_size
    inside = set(_latent_module(part).parameters())
    with seeded(seed):
        targets = torch.rand(rows, 3, side, side) * 2 - 1
    subject.doing = f"posterior(targets of shape {tuple(targets.shape)})"
    mean, std = part.posterior(targets)
    for name, tensor in (("mean", mean), ("std", std)):
        if tensor is not None:
            expect_shape(tensor, name, "(N, c, h, w)", (rows, *part.spec.latent_shape((side, side))))
            expect_finite(tensor, name)
            expect(tensor.requires_grad, False, f"{name}.requires_grad")
    expect_true(std is None or bool((std >= 0).all()), "std has values below 0", "at least 0")
    with torch.no_grad():
        found = part.encode(targets, generator(seed))
        expect_close(
            found, sample_latents(mean, std, generator(seed)), "latents of encode", "mean + std * noise"
        )
        for parameter in part.parameters():
            if parameter not in inside:
                parameter.add_(1)
    again = part.posterior(targets)[0]
    expect_close(
        again, mean, f"mean after other weights than those of '{part.posterior_module}' changed", "before"
    )


def _loss(subject: DecoderSubject, part: Any, inputs: Inputs, predict: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss (N,) where the network's prediction is `predict(target)`."""
    targets: list[Tensor] = []
    add_noise = part.add_noise

    def listen(*args: Any, **named: Any) -> Any:
        made = add_noise(*args, **named)
        targets.append(made[1])
        return made

    part.add_noise, part.denoise = listen, lambda *args, **named: predict(targets[-1])
    try:
        loss_N = subject.loss_N(part, inputs)
        expect(len(targets), 1, "the number of times that loss calls add_noise")
        return loss_N
    finally:
        del part.add_noise, part.denoise


@check(KIND, case=cases)
def perfect_prediction(subject: DecoderSubject, case: Case) -> None:
    """Where the network predicts exactly what `add_noise` says it should, the loss is 0.

    The loss measures what the network is asked for, and not something else.
    """
    inputs = subject.inputs(case)
    subject.doing = "loss of a prediction equal to the target"
    with torch.no_grad():
        loss_N = _loss(subject, subject.make(), inputs, lambda target: target)
    expect_close(loss_N, torch.zeros(case.rows), "loss", "0")


@check(KIND, case=cases)
def loss_agrees(subject: DecoderSubject, case: Case) -> None:
    """`loss` is the mean squared error of `denoise` against the target of `add_noise`, times a weight of the timestep.

    What training reports is comparable, and caching latents or noise beforehand changes nothing.
    """
    part, inputs = subject.make(), subject.inputs(case)
    latents, timesteps = inputs["latents"], inputs["timesteps"]
    with torch.no_grad():
        subject.doing = "loss of a prediction that is off by 1"
        weight_N = _loss(subject, part, inputs, lambda target: target + 1)
        expect_true(bool((weight_N > 0).all()), f"loss={weight_N.tolist()}", "more than 0")
        with seeded(1):  # that of `subject.loss_N`
            noise = torch.randn(latents.shape)
        noisy, target = part.add_noise(latents, noise, timesteps)
        expect_shape(noisy, "noisy", "(N, c, h, w)", latents.shape)
        prediction = part.denoise(noisy, timesteps, subject.condition(inputs), subject.extras(case.rows))
        error_N = (prediction - target).square().flatten(1).mean(1)
        subject.doing = f"loss(latents of shape {tuple(latents.shape)})"
        found = subject.loss_N(part, inputs)
    expect_close(found, weight_N * error_N, "loss", "that of denoise and add_noise")


def _all_take_half(subject: DecoderSubject) -> str | None:
    return None if subject.part.spec.float32_modules else "its spec names no float32_modules"


@check(KIND, unless=_all_take_half)
def float32_kept(subject: DecoderSubject) -> None:
    """What `spec.float32_modules` names stays in float32 in a decoder of half precision, not even rounded.

    SDXL's autoencoder draws pictures, and not black squares.
    """
    for dtype in (torch.bfloat16, torch.float16):
        part = subject.make()
        subject.doing = f"part.to({dtype})"
        part.to(dtype)
        for name in part.spec.float32_modules:
            wanted = subject.part.get_submodule(name).state_dict()
            for key, tensor in part.get_submodule(name).state_dict().items():
                if tensor.is_floating_point():
                    expect(tensor.dtype, torch.float32, f"{name}.{key}.dtype")
                    expect_same(tensor, wanted[key], f"{name}.{key}", "before")
