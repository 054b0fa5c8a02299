"""Checks of `preprocess`: how vision encoders and image decoders read images."""

from __future__ import annotations

import io
from itertools import product

import torch
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from dreamkit.parts.pictures import to_rgb
from dreamkit.testing.check import check
from dreamkit.testing.expect import expect, expect_close, expect_finite, expect_true, expect_within
from dreamkit.testing.part_subject import PictureSubject
from dreamkit.testing.subject_kinds import DecoderSubject

KINDS = ("vision_encoder", "image_decoder")
FORMATS = ("RGB", "grey", "RGBA", "palette", "16-bit", "EXIF-rotated")
ORIENTATION, ROTATED = 0x0112, 6  # the EXIF tag, and its value for a phone held upright

sides = st.integers(1, 40)
seeds = st.integers(0, 999)


def random_image(format: str, width: int, height: int, seed: int) -> Picture:
    """Return an image of random blocks in one of the formats that data sets hold."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 4), generator=generator, dtype=torch.uint8).numpy()
    rgba = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    match format:
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


def _describe_call(subject: PictureSubject, format: str, *pictures: Picture) -> None:
    sizes = ", ".join(f"{p.width} x {p.height} {p.mode}" for p in pictures)
    subject.call_text = f"preprocess([{sizes}]), the first one {format}"


@check(*KINDS, width=sides, height=sides, seed=seeds)
def preprocess_any(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """`preprocess` turns an image of any size, shape and mode into float32 pixels of the spec's size, in their range.

    One odd file among millions, such as a 1 x 1 tracking pixel or a banner, does not end a training run.
    """
    side = subject.part.spec.image_size
    for format, (w, h) in product(FORMATS, ((width, height), (1, 1), (50 * width, height))):
        picture = random_image(format, w, h, seed)
        _describe_call(subject, format, picture, picture)
        pixels = subject.preprocess([picture, picture])
        expect(tuple(pixels.shape), (2, 3, side, side), f"{subject.pixels}.shape", "(N, 3, H, W)")
        expect(pixels.dtype, torch.float32, f"{subject.pixels}.dtype")
        expect_finite(pixels, subject.pixels)
        if subject.bounds is not None:
            expect_within(pixels, subject.pixels, *subject.bounds)


@check(*KINDS, width=st.integers(4, 24), height=st.integers(4, 24), seed=seeds)
def preprocess_upright(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """`preprocess` reads an image as `dreamkit.to_rgb` returns it: upright, 16 bits scaled to 8, on a white background.

    Reading and drawing see the same image, and a phone's photographs do not lie on their side.
    """
    for format in FORMATS:
        picture = random_image(format, width, height, seed)
        _describe_call(subject, format, picture, picture)
        pixels, plain = subject.preprocess([picture, picture]), to_rgb(picture)
        expect_close(pixels, subject.preprocess([plain, plain]), subject.pixels, "those of to_rgb(image)")


@check(*KINDS, size=st.integers(8, 40))
def preprocess_colours(subject: PictureSubject, size: int) -> None:
    """In the pixels, red is the first channel and blue the third, left stays left, up stays up, and bright is larger.

    Pretrained weights get images like those of their training, and drawn images are neither mirrored nor blue.
    """
    red_left, bright_top = Image.new("RGB", (size, size), "blue"), Image.new("RGB", (size, size), "black")
    red_left.paste("red", (0, 0, size // 2, size))
    bright_top.paste("white", (0, 0, size, size // 2))
    _describe_call(
        subject, "red on the left, blue on the right; the second white above black", red_left, bright_top
    )
    coloured, grey = subject.preprocess([red_left, bright_top])
    side = subject.part.spec.image_size
    left, right = coloured[:, :, : side // 2].mean((1, 2)), coloured[:, :, -(side // 2) :].mean((1, 2))
    top, bottom = grey[:, : side // 2].mean((1, 2)), grey[:, -(side // 2) :].mean((1, 2))
    holds = left[0] > right[0] and left[2] < right[2]
    actual = f"means of {_by_channel(left)} on the left and {_by_channel(right)} on the right"
    expect_true(holds, actual, f"more red and less blue on the left of {subject.pixels} than on the right")
    holds = bool((top > bottom).all())
    actual = f"means of {_by_channel(top)} above and {_by_channel(bottom)} below"
    expect_true(holds, actual, f"larger {subject.pixels} above than below")


def _by_channel(means: Tensor) -> dict[str, float]:
    return dict(zip(("red", "green", "blue"), means.tolist(), strict=True))


@check(*KINDS, width=sides, height=sides, seed=seeds)
def preprocess_alone(subject: PictureSubject, width: int, height: int, seed: int) -> None:
    """`preprocess` gives an image the same pixels alone as in a list with others.

    The model's input does not depend on the batch.
    """
    for format in FORMATS:
        pictures = [random_image(format, width, height, seed), random_image("RGB", 9, 30, seed + 1)]
        _describe_call(subject, format, *pictures)
        together = subject.preprocess(pictures)
        expect(len(together), len(pictures), f"len({subject.pixels})")
        for index, picture in enumerate(pictures):
            alone = subject.preprocess([picture])
            name = f"{subject.pixels}[{index}]"
            expect_close(together[index], alone[0], f"{name} beside another image", f"{name} alone")


@check(*KINDS, seed=seeds)
def pictures_unchanged(subject: PictureSubject, seed: int) -> None:
    """`preprocess` does not change the images that it reads.

    The image decoder and the vision encoder, which read the same image, see the same pixels.
    """
    for format in FORMATS:
        picture = random_image(format, 33, 21, seed)
        before = picture.copy()
        _describe_call(subject, format, picture)
        subject.preprocess([picture, picture])
        is_same = (picture.size, picture.mode, picture.tobytes()) == (
            before.size,
            before.mode,
            before.tobytes(),
        )
        actual = f"a {picture.width} x {picture.height} {picture.mode} with other content"
        expect_true(is_same, actual, "an unchanged image after the call")


def _states_no_side(subject: PictureSubject) -> str | None:
    return "its spec has no resized_side" if subject.part.spec.resized_side is None else None


@check(*KINDS, unless=_states_no_side, seed=seeds)
def resized_side_agrees(subject: PictureSubject, seed: int) -> None:
    """`preprocess` does not resize an image whose sides are the spec's `resized_side`; extras ignore an image's size.

    Images that are decoded smaller (`train.decode_margin`) are not enlarged, and no extra is wrong.
    """
    side = subject.part.spec.resized_side
    generator = torch.Generator().manual_seed(seed)
    black_or_white = 255 * torch.randint(0, 2, (side, side, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(black_or_white.numpy())
    _describe_call(subject, "black or white in each channel", picture, picture)
    channels = subject.preprocess([picture, picture])[0].flatten(1)
    least, most = channels.amin(1, keepdim=True), channels.amax(1, keepdim=True)
    mixed = torch.minimum(channels - least, most - channels) > 1e-4 * (most - least)
    actual = f"other values in {mixed.float().mean():.0%} of them"
    expect_true(not mixed.any(), actual, f"no values of {subject.pixels} but those of black and white")
    if isinstance(subject, DecoderSubject):
        pictures = [picture, picture.resize((2 * side, 2 * side))]
        _describe_call(subject, "as large as resized_side", *pictures)
        for name, (small, large) in subject.part.preprocess(pictures)[1].items():
            expect_close(
                large, small, f"extras['{name}'] of an image of twice the size", "the same of the other"
            )
