"""CPU time of a JPEG until the pixels of CLIP and Stable Diffusion: `python tests/benchmarks/decoding_jpegs.py`.

For each size of the image and each `train.decode_margin`, it prints the times of decoding and of both `preprocess`, and
the mean absolute difference of the pixels, of 0 to 255, to those of whole images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as Picture
from reading_pairs import photograph
from torch import Tensor
from transformers import CLIPImageProcessor

from dreamkit import decode_picture, to_rgb
from dreamkit.data.shrinking import decoding_at_least
from dreamkit_diffusers.pixels import square_pixels

VISION, DECODER = 224, 512  # sides of the pixels


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median CPU time of a call."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return 1000 * float(np.median(times))


@dataclass(frozen=True)
class Timing:
    """The times of one image in milliseconds, by side for `preprocess`, and its pixels, of 0 to 255, by side."""

    width: int
    decode: float
    preprocess: Mapping[int, float]
    pixels: Mapping[int, Tensor]

    @property
    def total(self) -> float:
        return self.decode + sum(self.preprocess.values())

    def cells(self, whole: Timing) -> list[str]:
        """Return the cells of a row; `whole` is the timing of the image decoded whole."""
        differences = [float((self.pixels[side] - whole.pixels[side]).abs().mean()) for side in self.pixels]
        return [
            str(self.width),
            f"{self.decode:.1f}",
            " + ".join(f"{each:.1f}" for each in self.preprocess.values()),
            f"{self.total:.1f}",
            "" if self is whole else f"{1 - self.total / whole.total:.0%}",
            "" if self is whole else ", ".join(f"{each:.1f}" for each in differences),
        ]


def timing(data: bytes, least_side: int | None, sides: Sequence[int], repeats: int) -> Timing:
    """Time the decoding of a JPEG, and the `preprocess` of the parts for `sides`."""
    processor = CLIPImageProcessor(size=VISION, crop_size=VISION)
    spread = 255 * float(np.mean(processor.image_std))
    methods: dict[int, Callable[[Picture], Tensor]] = {
        VISION: lambda picture: spread * processor([to_rgb(picture)], return_tensors="pt")["pixel_values"],
        DECODER: lambda picture: 127.5 * square_pixels(picture, DECODER),
    }
    with decoding_at_least(least_side):
        picture = decode_picture(data, "image")
        decode = milliseconds(lambda: decode_picture(data, "image"), repeats)
    times = {side: milliseconds(partial(methods[side], picture), repeats) for side in sides}
    return Timing(picture.width, decode, times, {side: methods[side](picture) for side in sides})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", type=int, nargs="+", default=[512, 1024, 2048, 4000], help="pixels of a side"
    )
    parser.add_argument("--repeats", type=int, default=9, help="calls, of which the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| image | parts | margin | decoded | decode | preprocess | sum | saved | difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in arguments.size:
        data = photograph(np.random.default_rng(0), size)
        for sides in ((VISION,), (DECODER,), (VISION, DECODER)):
            whole = timing(data, None, sides, arguments.repeats)
            start = [str(size), " and ".join(map(str, sides))]
            print(f"| {' | '.join([*start, '', *whole.cells(whole)])} |", flush=True)
            for margin in (2, 1):
                if size >= 2 * margin * max(sides):  # else the image stays whole
                    smaller = timing(data, margin * max(sides), sides, arguments.repeats)
                    print(f"| {' | '.join([*start, str(margin), *smaller.cells(whole)])} |", flush=True)


if __name__ == "__main__":
    main()
