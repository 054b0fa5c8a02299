"""JPEG images that are decoded smaller: never below the size that is needed, and close to images that are resized."""

from __future__ import annotations

import io
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from hypothesis import example, given, settings, strategies as st
from PIL import Image as PIL, ImageCms
from PIL.Image import Resampling

import tiny
from dreamkit import DecoderSpec, DocumentError, VisionSpec, decode_picture, to_rgb
from dreamkit.data.image_files import open_picture
from dreamkit.data.mixture import Mixture
from dreamkit.data.pairs import Pairs
from dreamkit.data.samples import Samples
from dreamkit.data.shrinking import decoding_at_least, least_side
from dreamkit.errors import TrainingError
from dreamkit.recipe.sections import TrainSection

PHOTOGRAPHS = sorted((Path(sklearn.__file__).parent / "datasets/images").glob("*.jpg"))
TRAIN = TrainSection(trainable=(), steps=1, batch_size=1)


def photograph(mode: str = "RGB", **options: Any) -> bytes:
    """Return a real photograph of 640 x 427 pixels as a JPEG of another kind."""
    file = io.BytesIO()
    with PIL.open(PHOTOGRAPHS[1]) as picture:
        picture.convert(mode).save(file, "JPEG", **{"quality": 95} | options)
    return file.getvalue()


def decoded(data: bytes, side: int | None) -> PIL.Image:
    with decoding_at_least(side):
        return decode_picture(data, "a.jpg")


def blank(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PIL.new("L", (width, height)).save(file, "JPEG")
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), side=st.integers(1, 300))
@example(width=1, height=100, side=1)
@example(width=100, height=1, side=300)
@example(width=255, height=257, side=128)
@example(width=256, height=256, side=32)
@example(width=256, height=256, side=31)
def test_a_side_is_never_smaller_than_needed_or_than_it_was(width: int, height: int, side: int) -> None:
    if max(width, height) > 100 * min(width, height):
        return
    size = decoded(blank(width, height), side).size
    scale = next(s for s in (8, 4, 2, 1) if min(width, height) // s >= side or s == 1)
    assert size == (-(-width // scale), -(-height // scale))
    assert all(now >= min(side, before) for now, before in zip(size, (width, height), strict=True))


def test_the_size_depends_on_the_block_in_this_thread_alone() -> None:
    data, sizes = photograph(), []
    with decoding_at_least(100):
        other = threading.Thread(target=lambda: sizes.append(decode_picture(data, "").size))
        other.start()
        other.join()
        with decoding_at_least(None):
            assert decode_picture(data, "").size == (640, 427)
        assert decode_picture(data, "").size == (160, 107)
        with pytest.raises(DocumentError), decoding_at_least(50):
            decode_picture(b"", "")
        assert decode_picture(data, "").tobytes() == decoded(data, 100).tobytes()
    assert sizes == [(640, 427)] and decode_picture(data, "").size == (640, 427)


def test_images_of_other_formats_stay_whole() -> None:
    for kind in ("PNG", "WEBP", "TIFF", "GIF", "BMP"):
        file = io.BytesIO()
        PIL.new("L", (64, 64)).save(file, kind)
        assert decoded(file.getvalue(), 8).size == (64, 64)


def test_a_truncated_jpeg_is_refused_at_every_size() -> None:
    data = photograph()
    for side in (40, 100, 200):
        for part in (0.02, 0.5, 0.9):
            with pytest.raises(DocumentError):
                decoded(data[: int(part * len(data))], side)


@pytest.mark.parametrize("photo", PHOTOGRAPHS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("margin", "most", "of_filters"), [(1, 6.0, 3.4), (2, 2.3, 1.4)])
def test_resized_images_are_close_to_those_of_whole_ones(
    photo: Path, margin: int, most: float, of_filters: float
) -> None:
    # The yardstick is the difference between the filters that parts use. These photographs are sharp at each pixel.
    filters = Resampling.BILINEAR, Resampling.BICUBIC
    data = photo.read_bytes()
    whole, compared = decode_picture(data, ""), 0
    for target in range(48, 220, 9):
        small = decoded(data, margin * target)
        if small.size == whole.size:
            continue
        size = (round(whole.width * target / whole.height), target)
        for resampling, other in (filters, filters[::-1]):
            expected, filtered = (np.asarray(whole.resize(size, each), float) for each in (resampling, other))
            difference = np.asarray(small.resize(size, resampling), float) - expected
            compared += 1
            assert abs(difference).mean() < min(most, of_filters * abs(filtered - expected).mean())
            assert abs(difference.mean()) < 1
    assert compared >= 2


def turned(orientation: int) -> bytes:
    exif = PIL.Exif()
    exif[0x0112] = orientation
    return photograph(exif=exif)


def phone_image() -> bytes:
    """Return a JPEG with a preview behind it (MPO)."""
    file = io.BytesIO()
    with PIL.open(PHOTOGRAPHS[1]) as picture:
        picture.save(file, "MPO", quality=95, save_all=True, append_images=[picture.resize((80, 53))])
    return file.getvalue()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = {
    "4:4:4": photograph(subsampling=0),
    "4:2:0": photograph(subsampling=2),
    "progressive": photograph(progressive=True),
    "grey": photograph("L"),
    "of a phone": phone_image(),
    "CMYK": photograph("CMYK"),
    "with a profile": photograph(icc_profile=PROFILE.replace("sRGB".encode("utf-16-be"), b"\0o" * 4)),
    **{f"orientation {number}": turned(number) for number in (2, 3, 6, 8)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_jpeg_becomes_the_same_rgb_image(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]
    (tmp_path / "a.jpg").write_bytes(data)
    with decoding_at_least(106):
        small = open_picture(tmp_path / "a.jpg", "a.jpg")
    whole = decode_picture(data, "")
    assert small.mode == whole.mode and small.size == (160, 107)
    assert small.info.get("icc_profile") == whole.info.get("icc_profile")
    size = (71, 107) if kind in ("orientation 6", "orientation 8") else (107, 71)
    small, whole = to_rgb(small), to_rgb(whole)
    assert (small.width < small.height) == (whole.width < whole.height) == (size[0] < size[1])
    pixels = [np.asarray(each.resize(size, Resampling.BICUBIC), float) for each in (small, whole)]
    assert abs(pixels[0] - pixels[1]).mean() < 2.5


def test_a_part_that_crops_first_gets_its_size_from_a_narrow_image() -> None:
    with PIL.open(PHOTOGRAPHS[0]) as picture:
        file = io.BytesIO()
        picture.resize((160, 1600)).save(file, "JPEG")
    assert decoded(file.getvalue(), 80).size == (80, 800)


def test_the_least_side_is_the_margin_times_the_largest_side_of_the_parts() -> None:
    vision, decoder = VisionSpec(224, 1, 1, resized_side=256), DecoderSpec(8, 512, 4, 8, resized_side=512)
    assert least_side(TRAIN, vision, decoder) is None
    for margin, side in ((1, 512), (1.5, 768), (1.001, 513), (2, 1024)):
        assert least_side(replace(TRAIN, decode_margin=margin), vision, decoder) == side
    assert least_side(replace(TRAIN, decode_margin=1), replace(vision, resized_side=518), decoder) == 518
    with pytest.raises(TrainingError, match=r"train\.decode_margin: expected model\.image_decoder to resize"):
        least_side(replace(TRAIN, decode_margin=1), vision, replace(decoder, resized_side=None))


def test_samples_of_a_run_have_the_same_small_images_alone_and_in_threads(tmp_path: Path) -> None:
    for number, path in enumerate(PHOTOGRAPHS):
        (tmp_path / f"{number}.jpg").write_bytes(path.read_bytes())
        (tmp_path / f"{number}.txt").write_text("a photograph")
    data = Pairs(Pairs.Config(tmp_path))
    assert data.is_thread_safe
    mixture = Mixture([data], [1.0], length=4)
    samples = pickle.loads(pickle.dumps(Samples(mixture, tiny.model().sequencer(), least_side=100)))
    alone = [samples[place].draws[0][1] for place in range(4)]
    together = [sequence.draws[0][1] for sequence in samples.__getitems__(range(4))]
    assert [picture.size for picture in alone] == [(160, 107)] * 4
    assert [each.tobytes() for each in alone] == [each.tobytes() for each in together]
    assert data[0].images[0].picture.size == (640, 427)
