"""Checks of how pictures are read, by vision encoders and by decoders that learn to draw them."""

from __future__ import annotations

import io
from itertools import product

import torch
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Image as Picture

from dreamkit.parts.pictures import to_rgb
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect, expect_close, expect_finite, expect_true, expect_within
from dreamkit.testing.subject import PictureSubject

READERS = ("vision_encoder", "image_decoder")
FORMS = ("RGB", "grey", "RGBA", "palette", "16-bit", "EXIF-rotated")
ORIENTATION, ROTATED = 0x0112, 6  # the EXIF tag, and its value for a camera held upright

sides = st.integers(1, 40)
seeds = st.integers(0, 999)


def picture(form: str, width: int, height: int, seed: int) -> Picture:
    """A picture of random blocks in one of the forms that data sets hold."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 4), generator=generator, dtype=torch.uint8).numpy()
    rgba = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    match form:
        case "grey":
            return rgba.convert("L")
        case "RGBA":
            return rgba
        case "palette":
            return rgba.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        case "16-bit":
            grey = torch.frombuffer(bytearray(rgba.convert("L").tobytes()), dtype=torch.uint8)
            deep = (grey.int() * 257).to(torch.uint16).view(height, width)
            return Image.fromarray(deep.numpy())
        case "EXIF-rotated":
            exif, file = Image.Exif(), io.BytesIO()
            exif[ORIENTATION] = ROTATED
            rgba.convert("RGB").save(file, "PNG", exif=exif)
            return Image.open(io.BytesIO(file.getvalue()))
    return rgba.convert("RGB")


def _say(subject: PictureSubject, form: str, *pictures: Picture) -> None:
    told = ", ".join(f"{p.width} x {p.height} {p.mode}" for p in pictures)
    subject.doing = f"preprocess([{told}]), the first {form}"


@check(*READERS, width=sides, height=sides, seed=seeds)
def preprocess_any(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """A picture of any size, shape and mode becomes float pixels of the size that the spec says, in their range.

    One odd file among millions, a 1 x 1 tracking pixel or a banner, does not end a training run.
    """
    side = subject.part.spec.image_size
    for form, (w, h) in product(FORMS, ((width, height), (1, 1), (50 * width, height))):
        given = picture(form, w, h, seed)
        _say(subject, form, given, given)
        pixels = subject.preprocess([given, given])
        expect(tuple(pixels.shape), (2, 3, side, side), f"{subject.pixels}.shape", "(N, 3, H, W)")
        expect(pixels.dtype, torch.float32, f"{subject.pixels}.dtype")
        expect_finite(pixels, subject.pixels)
        if subject.bounds is not None:
            expect_within(pixels, subject.pixels, *subject.bounds)


@check(*READERS, width=st.integers(4, 24), height=st.integers(4, 24), seed=seeds)
def preprocess_upright(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """A picture is read as `dreamkit.to_rgb` shows it: upright, 16 bits scaled, what is transparent laid on white.

    What is read and what is drawn are the same picture, and photographs of telephones do not lie on their side.
    """
    for form in FORMS:
        given = picture(form, width, height, seed)
        _say(subject, form, given, given)
        pixels, plain = subject.preprocess([given, given]), to_rgb(given)
        expect_close(pixels, subject.preprocess([plain, plain]), subject.pixels, "of to_rgb(picture)")


@check(*READERS, size=st.integers(8, 40))
def preprocess_colours(subject: PictureSubject, size: int) -> None:
    """Red is the first channel and blue the third, left is left, up is up, and dark is less than bright.

    Pretrained weights see the pictures that they were trained on, and drawings are not mirrored or blue.
    """
    red_left, bright_top = Image.new("RGB", (size, size), "blue"), Image.new("RGB", (size, size), "black")
    red_left.paste("red", (0, 0, size // 2, size))
    bright_top.paste("white", (0, 0, size, size // 2))
    _say(subject, "red on the left and blue on the right, the second white above black", red_left, bright_top)
    coloured, grey = subject.preprocess([red_left, bright_top])
    side = subject.part.spec.image_size
    left, right = coloured[:, :, : side // 2].mean((1, 2)), coloured[:, :, -(side // 2) :].mean((1, 2))
    top, bottom = grey[:, : side // 2].mean((1, 2)), grey[:, -(side // 2) :].mean((1, 2))
    names = "red", "green", "blue"
    told = [dict(zip(names, half.tolist(), strict=True)) for half in (left, right, top, bottom)]
    wanted = "more red and less blue on the left than on the right"
    holds = left[0] > right[0] and left[2] < right[2]
    expect_true(holds, f"mean {subject.pixels} are {told[0]} on the left and {told[1]} on the right", wanted)
    holds = bool((top > bottom).all())
    expect_true(
        holds, f"mean {subject.pixels} are {told[2]} above and {told[3]} below", "more above than below"
    )


@check(*READERS, width=sides, height=sides, seed=seeds)
def preprocess_alone(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """A picture gives the same pixels alone as in a list with others.

    What the model sees does not depend on how a batch was put together.
    """
    for form in FORMS:
        given = [picture(form, width, height, seed), picture("RGB", 9, 30, seed + 1)]
        _say(subject, form, *given)
        together = subject.preprocess(given)
        expect(len(together), len(given), f"len({subject.pixels})")
        for index, each in enumerate(given):
            alone = subject.preprocess([each])
            expect_close(together[index], alone[0], f"{subject.pixels}[{index}] beside another", "alone")


@check(*READERS, seed=seeds)
def pictures_unchanged(subject: PictureSubject, seed: int) -> None:
    """`preprocess` leaves the pictures it is given as they are.

    A picture that is drawn and read back is the same one for both.
    """
    for form in FORMS:
        given = picture(form, 33, 21, seed)
        before = given.copy()
        _say(subject, form, given)
        subject.preprocess([given, given])
        same = (given.size, given.mode, given.tobytes()) == (before.size, before.mode, before.tobytes())
        expect_true(
            same, f"the picture after the call ({given.width} x {given.height} {given.mode})", "as it was"
        )
