"""Pairs of JPEG images and captions that a data loader reads from tars: `python tests/benchmarks/reading_pairs.py`.

Writes tars as img2dataset does. Then `tars` of dreamkit, webdataset and the builder `webdataset` of `datasets` take
turns on them. In each, worker processes decode the images and make tensors of 256 x 256; `tars` also reads at random
places and makes tokens, and decodes large images smaller (`train.decode_margin`). webdataset and `datasets` are no
dependencies: one that is not installed is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from PIL import Image as PIL
from PIL.Image import Image as Picture
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import tiny
from dreamkit import Url
from dreamkit.data.image_files import decode_picture
from dreamkit.data.mixture import Mixture
from dreamkit.data.samples import Samples
from dreamkit.data.shrinking import decoding_at_least
from dreamkit.document import Document
from dreamkit_data.tar_samples import read_tar_sample
from dreamkit_data.tars import Tars, TarsConfig
from tar_files import write_tar

BATCH: Final = 16
SIDE: Final = 256  # of the tensors
MARGINS: Final = {margin: margin * SIDE for margin in (1, 2)}
CAPTION: Final = "a photograph of a street with trees, seen from above"


def photograph(rng: np.random.Generator, size: int) -> bytes:
    """Return a JPEG of smooth colours, finer ones, and the noise of a sensor."""
    picture = np.zeros((size, size, 3))
    for cells, strength in ((6, 60), (24, 30), (96, 12), (size, 3)):
        field = (rng.normal(size=(cells, cells, 3)) * strength + 128).clip(0, 255).astype(np.uint8)
        picture += np.asarray(PIL.fromarray(field).resize((size, size), PIL.Resampling.BICUBIC)) - 128.0
    file = io.BytesIO()
    PIL.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_shards(folder: Path, shards: int, samples: int, size: int) -> list[Path]:
    rng = np.random.default_rng(0)
    images = [photograph(rng, size) for _ in range(min(samples, 200 * 384**2 // size**2 + 1))]
    paths = [folder / f"{number:05}.tar" for number in range(shards)]
    for shard, path in enumerate(paths):
        members = []
        for number in range(samples):
            key = f"{shard:05}{number:04}"
            record = {"caption": CAPTION, "key": key, "status": "success", "width": size, "height": size}
            members += [
                (f"{key}.jpg", images[number % len(images)]),
                (f"{key}.json", json.dumps(record).encode()),
                (f"{key}.txt", CAPTION.encode()),
            ]
        write_tar(path, members)
    return paths


def batch_of(pairs: Iterable[tuple[Picture, str]]) -> tuple[torch.Tensor, list[str]]:
    """Return images (N, 256, 256, 3) and captions."""
    pictures, texts = zip(*pairs, strict=True)
    resized = [
        np.asarray(each.convert("RGB").resize((SIDE, SIDE), PIL.Resampling.BICUBIC)) for each in pictures
    ]
    return torch.from_numpy(np.stack(resized)), list(texts)


def from_sequences(sequences: Sequence[Any]) -> tuple[torch.Tensor, list[str]]:
    return batch_of((sequence.draws[0][1], sequence.name) for sequence in sequences)


class SlowTars(Tars):
    """Tars on storage whose reads take some seconds longer."""

    def __init__(self, config: TarsConfig, delay: float, *, is_thread_safe: bool) -> None:
        super().__init__(config)
        self.delay = delay
        self.is_thread_safe = is_thread_safe  # type: ignore[misc]

    def sample(self, index: int, choices: random.Random) -> Document:
        time.sleep(self.delay)
        return super().sample(index, choices)


def dreamkit_loader(
    paths: list[Path],
    index: Path,
    delay: float,
    workers: int,
    threads: bool,
    shuffle: Any,
    least_side: int | None = None,
) -> DataLoader[Any]:
    data = SlowTars(TarsConfig(paths, index=index), delay, is_thread_safe=threads)
    mixture = Mixture([data], [1.0], length=len(data), shuffle=shuffle)
    samples = Samples(mixture, tiny.model().sequencer(), least_side=least_side)
    return DataLoader(samples, BATCH, num_workers=workers, collate_fn=from_sequences)


def webdataset_loader(paths: list[Path], workers: int) -> DataLoader[Any]:
    import webdataset

    data = webdataset.WebDataset([*map(str, paths)], shardshuffle=100).shuffle(1000).decode("pilrgb")
    data = data.to_tuple("jpg", "txt").batched(BATCH, collation_fn=batch_of)
    return DataLoader(data, None, num_workers=workers)


def datasets_loader(paths: list[Path], workers: int) -> DataLoader[Any]:
    import datasets

    datasets.disable_progress_bars()
    files = {"train": [*map(str, paths)]}
    data = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    return DataLoader(
        data.shuffle(seed=0, buffer_size=1000), BATCH, num_workers=workers, collate_fn=from_records
    )


def from_records(records: Sequence[Any]) -> tuple[torch.Tensor, list[str]]:
    return batch_of((record["jpg"], record["txt"]) for record in records)


def measure(make: Callable[[], DataLoader[Any]], limit: int) -> tuple[float, float]:
    """Return samples a second after the first batch, for which workers start; and milliseconds of CPU time of one."""
    loader = make()
    used, batches = cpu_seconds(), iter(loader)
    number = first = len(next(batches)[1])
    begin = time.perf_counter()
    while number < limit:
        number += len(next(batches)[1])
    seconds = time.perf_counter() - begin
    del batches  # ends the workers, whose time counts then
    return (number - first) / seconds, 1000 * (cpu_seconds() - used) / number


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def parts(data: Tars, number: int, least_side: int | None) -> dict[str, float]:
    """Return milliseconds of CPU time of one sample in this process, with images decoded at `least_side`."""
    contents = [read_tar_sample(data._spans, index) for index in range(number)]
    images = [content(sample.members["jpg"]) for _, sample, content in contents]
    steps: dict[str, Callable[[int], Any]] = {
        "read the document": lambda n: data[n],
        "of that, decode the JPEG": lambda n: decode_picture(images[n], ""),
        "resize to the tensor": lambda n: batch_of([(pictures[n], "")]),
    }
    result = {}
    with decoding_at_least(least_side):
        pictures = [decode_picture(image, "") for image in images]
        for name, step in steps.items():
            begin = time.process_time()
            for n in range(number):
                step(n)
            result[name] = 1000 * (time.process_time() - begin) / number
    return result


def uploaded(paths: Sequence[Path], delay: float, stack: ExitStack) -> list[Url]:
    """Return the URLs of tars in a bucket, whose server runs in a process of its own until `stack` ends."""
    from bucket_server import BucketServer

    server = BucketServer()
    stack.callback(server.stop)
    os.environ.update(server.environment)
    bucket = server.new_bucket()
    for path in paths:
        bucket.put(path.name, path.read_bytes())
    stack.enter_context(server.answers(delay=delay))
    return [bucket.url(path.name) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=4, help="number of tars")
    parser.add_argument("--samples", type=int, default=750, help="samples in each tar")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[384, 1024],
        help="pixels of the sides of an image; several in turn",
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loader; the median counts")
    parser.add_argument(
        "--delay", type=float, default=0, help="milliseconds added to a read of tars, which then run alone"
    )
    parser.add_argument(
        "--bucket", action="store_true", help="read tars from a bucket of moto's server, which adds the delay"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    for size in arguments.size:
        compare(size, arguments)


def compare(size: int, arguments: argparse.Namespace) -> None:
    """Print the measurements of images of `size` pixels."""
    is_slow, delay = bool(arguments.delay or arguments.bucket), arguments.delay / 1000
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        paths = write_shards(Path(temporary), arguments.shards, arguments.samples, size)
        index, limit = Path(temporary) / "index", arguments.shards * arguments.samples - 4 * BATCH
        places: list[Any] = uploaded(paths, delay, stack) if arguments.bucket else paths
        # with a smaller image, no margin has an effect
        margins = {margin: side for margin, side in MARGINS.items() if 2 * side <= size}
        ours = partial(dreamkit_loader, places, index, 0 if arguments.bucket else delay)
        loaders: dict[str, Callable[[int], DataLoader[Any]]] = {
            "tars": lambda workers: ours(workers, True, "full"),
            "tars, shuffle: blocks": lambda workers: ours(workers, True, "blocks"),
            "tars without threads": lambda workers: ours(workers, False, "full"),
            **{
                f"tars, decode_margin: {margin}": partial(ours, threads=True, shuffle="full", least_side=side)
                for margin, side in margins.items()
            },
            "webdataset": partial(webdataset_loader, paths),
            "datasets": partial(datasets_loader, paths),
        }
        names = [name for name in loaders if name.startswith("tars") or (not is_slow and find_spec(name))]
        bytes_of_image = sum(path.stat().st_size for path in paths) // (arguments.shards * arguments.samples)
        print(
            f"{limit:,} samples of {size} x {size} pixels, {bytes_of_image:,} bytes; load {os.getloadavg()[0]:.1f}"
        )
        data = Tars(TarsConfig(paths, index=index))
        for margin, side in {None: None, **margins}.items():
            steps = parts(data, min(300, limit), side)
            listed = ", ".join(f"{name}: {milliseconds:.2f}" for name, milliseconds in steps.items())
            print(f"ms of CPU time with decode_margin {margin}: {listed}")
        for workers in arguments.workers:
            turns = [
                [measure(partial(loaders[name], workers), limit) for name in names]
                for _ in range(arguments.rounds)
            ]
            for name, measured in zip(names, zip(*turns, strict=True), strict=True):
                rates, times = zip(*measured, strict=True)
                print(
                    f"| {name} | {workers} | {median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f}) "
                    f"| {median(times):.2f} |",
                    flush=True,
                )
        others = [name for name in names if not name.startswith("tars")]
        versions = ", ".join(f"{name} {version(name)}" for name in ("pillow", "torch", *others))
        print(f"load {os.getloadavg()[0]:.1f}; {versions}")


if __name__ == "__main__":
    main()
