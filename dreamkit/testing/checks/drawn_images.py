"""Checks of an image decoder's drawing.

N images, c x h x w latents.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import count
from dreamkit.parts.specs import Condition
from dreamkit.testing.check import cases, check
from dreamkit.testing.checks.preprocessing import random_image
from dreamkit.testing.expect import (
    expect,
    expect_close,
    expect_different,
    expect_finite,
    expect_same,
    expect_shape,
    expect_true,
    expect_value_error,
)
from dreamkit.testing.part_subject import Case, Inputs, generator, seeded
from dreamkit.testing.subject_kinds import DecoderSubject

KIND = "image_decoder"
PERFECT_STEPS = 12
# For latents of unit variance. A scheduler may leave the noise of the first timestep, about 0.03.
PERFECT_ERROR = 0.1

seeds = st.integers(0, 999)
multiples = st.integers(-1, 2)  # of `size_multiple`, added to the default size


def _takes_no_extras(subject: DecoderSubject) -> str | None:
    return None if subject.extras(2) else "its default_extras() are empty: it takes none"


@check(KIND, unless=_takes_no_extras, case=cases, width=st.integers(4, 24), height=st.integers(4, 24))
def extras_agree(subject: DecoderSubject, case: Case, width: int, height: int) -> None:
    """`preprocess` and `default_extras` return the same extras in shape and dtype; `loss` and `draw` use theirs.

    A decoder gets the same facts about an image, such as its original size, in training and in drawing.
    """
    part, inputs = subject.make(), subject.inputs(case)
    pictures = [random_image("RGB", width + row, height, row) for row in range(case.rows)]
    subject.call_text = f"preprocess({count(case.rows, 'image')})"
    _, extras = part.preprocess(pictures)
    default = subject.extras(case.rows)
    expect(sorted(extras), sorted(default), "the names of the extras of preprocess", "as of default_extras")
    for name, extra in extras.items():
        expect_shape(extra, f"extras['{name}']", "(N, ...)", default[name].shape)
        expect(extra.dtype, default[name].dtype, f"extras['{name}'].dtype")
    subject.call_text = "loss with the extras of preprocess"
    with torch.no_grad():
        expect_finite(subject.loss_N(part, inputs, extras), "loss")
    passed: list[Any] = []
    denoise = part.denoise

    def record(noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Any) -> Tensor:
        passed.append(extras)
        return denoise(noisy, timesteps_N, condition, extras)

    part.denoise = record
    subject.draw(part, inputs, extras=extras)
    for name, extra in extras.items():
        expect_true(name in passed[0], f"{sorted(passed[0])}", f"extras '{name}' of draw in denoise")
        expect_same(passed[0][name], extra, f"extras['{name}'] in denoise", "that passed to draw")


@check(KIND)
def scheduler_names(subject: DecoderSubject) -> None:
    """`scheduler` returns a new scheduler for each name in the spec, and raises a ValueError for any other name.

    `dreamkit check` accepts exactly the schedulers that exist, and a misspelled one never draws with another.
    """
    part = subject.part
    for name in (None, *(part.spec.schedulers or ())):
        subject.call_text = f"scheduler({name!r})"
        is_new = part.scheduler(name) is not part.scheduler(name)
        expect_true(is_new, "the same object twice", "a new scheduler for each call")
    subject.call_text = "scheduler('no such scheduler')"
    expect_value_error(lambda: part.scheduler("no such scheduler"), "an unknown scheduler")


@check(KIND, case=cases)
def perfect_drawing(subject: DecoderSubject, case: Case) -> None:
    """If the network predicts without error, every scheduler reaches the clean latents.

    Scheduler, objective and scale fit each other; otherwise images are noise or grey.
    """
    part, inputs = subject.make(), subject.inputs(case)
    clean = inputs["latents"]
    dtype = part.timesteps(1).dtype

    def predict(noisy: Tensor, timesteps_N: Tensor, *rest: Any) -> Tensor:
        """Return the target for noisy latents of `clean`; `add_noise` is linear in both of its arguments."""
        timesteps_N = timesteps_N.to(dtype)
        zeros, ones = torch.zeros_like(clean), torch.ones_like(clean)
        signal, spread = (part.add_noise(a, b, timesteps_N)[0] for a, b in ((clean, zeros), (zeros, ones)))
        return part.add_noise(clean, (noisy - signal) / spread.clamp(min=1e-4), timesteps_N)[1]

    part.denoise = predict
    for name in (None, *(part.spec.schedulers or ())):
        steps = subject.steps(part, PERFECT_STEPS, name)
        subject.call_text = f"draw_steps(scheduler={name!r}, steps={steps}) with a perfect network"
        with seeded(case.seed + 1):  # noise that differs from the latents
            *_, last = part.draw_steps(
                subject.condition(inputs),
                scheduler=name,
                steps=steps,
                guidance=1.0,
                latents=torch.randn(clean.shape),
                generators=generator(case.seed),
            )
        error = (last.latents - clean).square().mean().sqrt().item()
        limit = f"rms|drawn latents - clean latents| of at most {PERFECT_ERROR}"
        expect_true(error <= PERFECT_ERROR, f"{error:.3g}", limit)


@check(KIND, case=cases)
def draw_seed(subject: DecoderSubject, case: Case) -> None:
    """Generators of one seed draw one image, whatever was drawn before; those of another seed draw another image.

    An image can be drawn again.
    """
    inputs = subject.inputs(case)
    first, again, other = (
        subject.draw(subject.part, inputs, generators=generator(seed))
        for seed in (case.seed, case.seed, case.seed + 1)
    )
    expect_close(again, first, "images", "images of the same seed")
    expect_different(other, first, "images of two seeds")


def _row_by_row(subject: DecoderSubject) -> Any:
    """Return a part whose network never mixes rows; `batch_invariance` is the check of that."""
    part = subject.make()

    def predict(noisy: Tensor, timesteps_N: Tensor, condition: Condition, extras: Any) -> Tensor:
        return 0.1 * noisy + condition.context.mean((1, 2)).view(-1, 1, 1, 1)

    part.denoise = predict
    return part


@check(KIND, case=cases)
def draw_alone(subject: DecoderSubject, case: Case) -> None:
    """With one generator for each image, an image does not depend on the others in its batch.

    A seed identifies an image, whatever the batch size.
    """
    part, inputs = _row_by_row(subject), subject.inputs(case)
    rows = range(case.rows)
    together = subject.draw(part, inputs, generators=[generator(row) for row in rows])
    for row in rows:
        twice = {name: tensor[[row, row]] for name, tensor in inputs.items()}
        alone = subject.draw(part, twice, generators=[generator(row), generator(row)])
        expect_close(together[row], alone[0], f"images[{row}] beside others", f"images[{row}] by itself")


@check(KIND, height=multiples, width=multiples, seed=seeds)
def draw_size(subject: DecoderSubject, height: int, width: int, seed: int) -> None:
    """`draw` draws the requested size or raises a ValueError, as for a side that is no multiple of `size_multiple`.

    A wide image is wide, and an impossible size is refused before minutes are spent on it.
    """
    part, inputs = subject.part, subject.inputs(Case(2, 3, seed))
    multiple, side = part.spec.size_multiple, part.spec.image_size
    for size in ((side, side), (side + height * multiple, max(multiple, side + width * multiple))):
        try:
            images = subject.draw(part, inputs, size=size)
        except ValueError:
            if size == (side, side):
                raise
            continue  # the part may refuse any size but its default
        expect_shape(images, "images", "(N, 3, H, W)", (2, 3, *size))
    if multiple > 1:
        expect_value_error(
            lambda: subject.draw(part, inputs, size=(side + 1, side)),
            "a side that is not a multiple of size_multiple",
        )


@check(KIND, case=cases)
def guidance_scale(subject: DecoderSubject, case: Case) -> None:
    """Guidance 1 ignores the negative condition, guidance 0 draws from it alone, and any other value requires it.

    `generation.guidance` means the same as in diffusers.
    """
    part, inputs = _row_by_row(subject), subject.inputs(case)
    negative_inputs = {**inputs, "context": 1 - inputs["context"]}
    negative = subject.condition(negative_inputs)
    latents = torch.randn(inputs["latents"].shape, generator=generator(case.seed))

    def draw(inputs: Inputs, **options: Any) -> Tensor:
        with seeded(0):
            return subject.draw(part, inputs, latents=latents, generators=generator(case.seed), **options)

    unguided, from_negative = draw(inputs, guidance=1.0), draw(negative_inputs, guidance=1.0)
    images = draw(inputs, guidance=1.0, negative=negative)
    expect_close(images, unguided, "images with guidance 1 and a negative condition", "images without one")
    expect_different(from_negative, unguided, "images from the condition and from the negative one")
    images = draw(inputs, guidance=0.0, negative=negative)
    expect_close(images, from_negative, "images with guidance 0", "images from the negative condition")
    expect_value_error(lambda: draw(inputs, guidance=2.0), "guidance 2 without a negative condition")


@check(KIND, case=cases)
def fixed_latents(subject: DecoderSubject, case: Case) -> None:
    """`draw` starts from the `latents` that it is passed: the same latents give the same image, others another.

    Two models, or two prompts, can be compared on the same noise.
    """
    inputs, images = subject.inputs(case), []
    for seed in (1, 1, 2):
        latents = torch.randn(inputs["latents"].shape, generator=generator(seed))
        with seeded(0):
            images.append(
                subject.draw(subject.part, inputs, latents=latents, generators=generator(case.seed))
            )
    first, again, other = images
    expect_close(again, first, "images", "images of the same latents")
    expect_different(other, first, "images of two sets of latents")


@check(KIND, case=cases)
def constant_condition(subject: DecoderSubject, case: Case) -> None:
    """Inside `cache_condition(condition)`, predictions from this and from other conditions stay bitwise identical.

    Computing keys and values once for each image, not once for each step, changes no image, not even a concurrent one.
    """
    part, extras = subject.make(), subject.extras(case.rows)
    pair = [subject.inputs(case._replace(seed=case.seed + offset)) for offset in range(2)]
    conditions = [subject.condition(inputs) for inputs in pair]

    def predictions(circumstance: str) -> Tensor:
        """Return the predictions for both latents from both conditions, in turns."""
        subject.call_text = f"denoise {circumstance}"
        with seeded(0):
            return torch.stack(
                [
                    part.denoise(inputs["latents"].clone(), inputs["timesteps"], condition, extras)
                    for inputs in pair
                    for condition in conditions
                ]
            )

    with torch.no_grad():
        expected = predictions("before cache_condition")

        def expect_unchanged(circumstance: str) -> None:
            expect_same(predictions(circumstance), expected, f"predictions {circumstance}", "those before it")

        with part.cache_condition(conditions[0]):
            expect_unchanged("inside cache_condition(condition)")
            with part.cache_condition(conditions[1]):
                expect_unchanged("inside cache_condition of two conditions")
        expect_unchanged("after cache_condition(condition)")
