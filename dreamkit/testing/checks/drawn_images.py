"""Checks of how an image decoder draws.

N images, c x h x w latents.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.parts.specs import Condition
from dreamkit.testing.check import cases, check
from dreamkit.testing.checks.preprocessing import picture
from dreamkit.testing.expect import (
    ContractError,
    expect,
    expect_close,
    expect_different,
    expect_finite,
    expect_same,
    expect_shape,
    expect_true,
)
from dreamkit.testing.subject import Case, Inputs, generator, seeded
from dreamkit.testing.subject_kinds import DecoderSubject

KIND = "image_decoder"
ORACLE_STEPS = 12
ORACLE_ERROR = (
    0.1  # of unit-variance latents; schedulers may leave the noise of the first timestep, about 0.03
)

seeds = st.integers(0, 999)
multiples = st.integers(-1, 2)  # by which a size differs from the one that is drawn unasked


def _takes_no_extras(subject: DecoderSubject) -> str | None:
    return None if subject.extras(2) else "its default_extras() are empty: it takes none"


@check(KIND, unless=_takes_no_extras, case=cases, width=st.integers(4, 24), height=st.integers(4, 24))
def extras_agree(subject: DecoderSubject, case: Case, width: int, height: int) -> None:
    """The extras of `preprocess` are like those of `default_extras`; the loss takes them, `draw` hands its own on.

    What a decoder is told of a picture in training, such as its original size, it is told in drawing too.
    """
    part, inputs = subject.make(), subject.inputs(case)
    pictures = [picture("RGB", width + row, height, row) for row in range(case.rows)]
    subject.doing = f"preprocess({case.rows} pictures)"
    _, extras = part.preprocess(pictures)
    wanted = subject.extras(case.rows)
    expect(sorted(extras), sorted(wanted), "the extras of preprocess", "those of default_extras")
    for name, extra in extras.items():
        expect_shape(extra, f"extras['{name}']", "(N, ...)", wanted[name].shape)
        expect(extra.dtype, wanted[name].dtype, f"extras['{name}'].dtype")
    subject.doing = "loss with the extras of preprocess"
    with torch.no_grad():
        expect_finite(subject.loss_N(part, inputs, extras), "loss")
    seen: list[Any] = []
    denoise = part.denoise

    def listen(noisy: Tensor, timesteps_N: Tensor, condition: Condition, given: Any) -> Tensor:
        seen.append(given)
        return denoise(noisy, timesteps_N, condition, given)

    part.denoise = listen
    subject.draw(part, inputs, extras=extras)
    for name, extra in extras.items():
        expect_true(
            name in seen[0], f"denoise is given the extras {sorted(seen[0])}", "those given to sample"
        )
        expect_same(seen[0][name], extra, f"extras['{name}'] of denoise", "given to sample")


@check(KIND)
def scheduler_names(subject: DecoderSubject) -> None:
    """Every scheduler that the spec names can be had, fresh each time, and any other is a ValueError.

    `dreamkit check` knows which schedulers a recipe may name, and a misspelled one does not draw with another.
    """
    part = subject.part
    for name in (None, *(part.spec.schedulers or ())):
        subject.doing = f"scheduler({name!r})"
        expect_true(
            part.scheduler(name) is not part.scheduler(name), "the second scheduler is the first", "fresh"
        )
    subject.doing = "scheduler('no such scheduler')"
    try:
        part.scheduler("no such scheduler")
    except ValueError:
        return
    raise ContractError("an unknown scheduler is accepted, but should be a ValueError")


@check(KIND, case=cases)
def perfect_drawing(subject: DecoderSubject, case: Case) -> None:
    """With a network that predicts without error, every scheduler arrives at the picture.

    Scheduler, objective and scale belong together; where one does not, pictures are noise or grey.
    """
    part, inputs = subject.make(), subject.inputs(case)
    clean = inputs["latents"]
    kind = part.timesteps(1).dtype

    def predict(noisy: Tensor, timesteps_N: Tensor, *rest: Any) -> Tensor:
        """The target that goes with these noisy latents of `clean`; `add_noise` is linear in both of its arguments."""
        timesteps_N = timesteps_N.to(kind)
        zeros, ones = torch.zeros_like(clean), torch.ones_like(clean)
        signal, spread = (part.add_noise(a, b, timesteps_N)[0] for a, b in ((clean, zeros), (zeros, ones)))
        return part.add_noise(clean, (noisy - signal) / spread.clamp(min=1e-4), timesteps_N)[1]

    part.denoise = predict
    for name in (None, *(part.spec.schedulers or ())):
        steps = subject.steps(part, ORACLE_STEPS, name)
        subject.doing = f"denoising(scheduler={name!r}, steps={steps}) by a perfect network"
        with seeded(case.seed + 1):  # noise that is not the latents themselves
            *_, last = part.draw_steps(
                subject.condition(inputs),
                scheduler=name,
                steps=steps,
                guidance=1.0,
                latents=torch.randn(clean.shape),
                generators=generator(case.seed),
            )
        error = (last.latents - clean).square().mean().sqrt().item()
        holds = error <= ORACLE_ERROR
        expect_true(holds, f"rms|drawn latents - clean latents|={error:.3g}", f"at most {ORACLE_ERROR}")


@check(KIND, case=cases)
def draw_seed(subject: DecoderSubject, case: Case) -> None:
    """`draw` with generators of one seed gives one picture, whatever else was drawn; another seed gives another.

    A picture that was liked can be drawn again.
    """
    inputs = subject.inputs(case)
    first, again, other = (
        subject.draw(subject.part, inputs, generators=generator(seed))
        for seed in (case.seed, case.seed, case.seed + 1)
    )
    expect_close(again, first, "images", "of the same seed")
    expect_different(other, first, "images of one seed - of another")


def _plain(subject: DecoderSubject) -> Any:
    """A part whose network looks at nothing but its own row: what is beside a row is a check of its own."""
    part = subject.make()

    def predict(noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Any) -> Tensor:
        return 0.1 * noisy + condition.context.mean((1, 2)).view(-1, 1, 1, 1)

    part.denoise = predict
    return part


@check(KIND, case=cases)
def draw_alone(subject: DecoderSubject, case: Case) -> None:
    """With a generator for each picture, a picture is the same whatever is drawn beside it.

    A seed names a picture, not a picture in a batch of some size.
    """
    part, inputs = _plain(subject), subject.inputs(case)
    own = range(case.rows)
    together = subject.draw(part, inputs, generators=[generator(row) for row in own])
    for row in own:
        twice = {name: tensor[[row, row]] for name, tensor in inputs.items()}
        alone = subject.draw(part, twice, generators=[generator(row), generator(row)])
        expect_close(together[row], alone[0], f"images[{row}] beside others", "by itself")


@check(KIND, height=multiples, width=multiples, seed=seeds)
def draw_size(subject: DecoderSubject, height: int, width: int, seed: int) -> None:
    """`draw` draws the size asked for, or refuses it; what is no multiple of `size_multiple` is a ValueError.

    A wide picture is wide, and a size that cannot be drawn is said before minutes are spent on it.
    """
    part, inputs = subject.part, subject.inputs(Case(2, 3, seed))
    multiple, side = part.spec.size_multiple, part.spec.image_size
    for size in ((side, side), (side + height * multiple, max(multiple, side + width * multiple))):
        try:
            images = subject.draw(part, inputs, size=size)
        except ValueError:
            if size == (side, side):
                raise
            continue  # it cannot draw this one, and says so
        expect_shape(images, "images", "(N, 3, H, W)", (2, 3, *size))
    if multiple > 1:
        try:
            subject.draw(part, inputs, size=(side + 1, side))
        except ValueError:
            return
        raise ContractError(
            "a size that is no multiple of size_multiple is drawn, but should be a ValueError"
        )


@check(KIND, case=cases)
def guidance_scale(subject: DecoderSubject, case: Case) -> None:
    """Guidance 1 is no guidance, guidance 0 draws from the negative condition, and any other needs one.

    `generation.guidance` means what it means in diffusers.
    """
    part, inputs = _plain(subject), subject.inputs(case)
    negative = {**inputs, "context": 1 - inputs["context"]}
    latents = torch.randn(inputs["latents"].shape, generator=generator(case.seed))

    def draw(given: Inputs, **options: Any) -> Tensor:
        with seeded(0):
            return subject.draw(part, given, latents=latents, generators=generator(case.seed), **options)

    without = draw(inputs, guidance=1.0)
    found = draw(inputs, guidance=1.0, negative=subject.condition(negative))
    expect_close(found, without, "images with guidance 1 and a negative condition", "without one")
    expect_different(
        draw(negative, guidance=1.0), without, "images from the negative condition - from the other"
    )
    found = draw(inputs, guidance=0.0, negative=subject.condition(negative))
    expect_close(found, draw(negative, guidance=1.0), "images with guidance 0", "from the negative condition")
    try:
        draw(inputs, guidance=2.0)
    except ValueError:
        return
    raise ContractError("guidance 2 without a negative condition is drawn, but should be a ValueError")


@check(KIND, case=cases)
def fixed_latents(subject: DecoderSubject, case: Case) -> None:
    """Initial latents that are given are used: fixed ones give a fixed picture, others another.

    Two models, or two prompts, can be compared on the same noise.
    """
    inputs, given = subject.inputs(case), []
    for seed in (1, 1, 2):
        latents = torch.randn(inputs["latents"].shape, generator=generator(seed))
        with seeded(0):
            given.append(subject.draw(subject.part, inputs, latents=latents, generators=generator(case.seed)))
    first, again, other = given
    expect_close(again, first, "images", "of the same latents")
    expect_different(other, first, "images of some latents - of others")


@check(KIND, case=cases)
def constant_condition(subject: DecoderSubject, case: Case) -> None:
    """Predictions within `cache_condition(condition)`, from this condition and from others, are bitwise those without.

    What is computed once a picture, instead of once a step, changes neither it nor another one that is under way.
    """
    part, extras = subject.make(), subject.extras(case.rows)
    pair = [subject.inputs(case._replace(seed=case.seed + one)) for one in range(2)]
    conditions = [subject.condition(inputs) for inputs in pair]

    def predictions() -> Tensor:
        """Those for both latents from both conditions, in turns."""
        with seeded(0):
            return torch.stack(
                [
                    part.denoise(inputs["latents"].clone(), inputs["timesteps"], condition, extras)
                    for inputs in pair
                    for condition in conditions
                ]
            )

    with torch.no_grad():
        wanted = predictions()
        subject.doing = "denoise within cache_condition(condition)"
        with part.cache_condition(conditions[0]):
            expect_same(predictions(), wanted, "predictions within cache_condition(condition)", "without")
            subject.doing = "denoise within cache_condition(...) of two conditions"
            with part.cache_condition(conditions[1]):
                expect_same(
                    predictions(), wanted, "predictions within cache_condition(...) of two", "without"
                )
        subject.doing = "denoise after cache_condition(condition)"
        expect_same(predictions(), wanted, "predictions after cache_condition(condition)", "before")
