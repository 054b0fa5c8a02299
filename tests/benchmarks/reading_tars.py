"""Time of indexing image-text tars and of reading their samples: `python tests/benchmarks/reading_tars.py`.

Writes tars as img2dataset does, with random bytes as images: the time to decode these is not measured.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from dreamkit_data.tar_samples import read_tar_sample
from dreamkit_data.tars import Tars, TarsConfig
from tar_files import write_tar


def write_shard(path: Path, samples: int, size: int) -> None:
    """Write a tar of samples with images of `size` bytes."""
    rng = random.Random(path.name)
    members = []
    for number in range(samples):
        key = f"{path.stem}{number:04}"
        record = {"url": "https://example.com/a.jpg", "caption": "a caption", "key": key, "status": "success"}
        record |= {"error_message": None, "width": 256, "height": 256, "exif": "{}", "sha256": "0" * 64}
        members += [
            (f"{key}.jpg", rng.randbytes(size)),
            (f"{key}.json", json.dumps(record, indent=4).encode()),
            (f"{key}.txt", b"a caption"),
        ]
    write_tar(path, members)


def timed(label: str, count: int, begin: float) -> None:
    seconds = time.process_time() - begin
    print(f"{label}: {count / seconds:,.0f} a second ({seconds:.2f} s of CPU time)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder for the tars; default: a temporary one")
    parser.add_argument("--shards", type=int, default=1, help="number of tars")
    parser.add_argument("--samples", type=int, default=10_000, help="samples in each tar")
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an image")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        paths = [folder / f"{number:05}.tar" for number in range(arguments.shards)]
        for path in paths:
            if not path.exists():
                write_shard(path, arguments.samples, arguments.size)
        for path in paths:
            with path.open("rb") as file:
                while file.read(2**24):  # into the page cache
                    pass
        index = Path(temporary) / "index"
        begin = time.process_time()
        for path in paths:  # one by one, in this process
            Tars(TarsConfig(path, index=index))
        timed("samples indexed", arguments.shards * arguments.samples, begin)
        begin = time.process_time()
        data = Tars(TarsConfig(paths, index=index))
        print(f"second start: {time.process_time() - begin:.3f} s of CPU time for {len(data):,} samples")
        costs = [facts["cost"] for facts in data.facts]
        print(f"reads to index: {sum(c['reads'] for c in costs):,}, {sum(c['bytes'] for c in costs):,} bytes")
        order = random.Random(0).sample(range(len(data)), len(data))
        begin = time.process_time()
        for number in order:
            read_tar_sample(data._spans, number)
        timed("samples read at random places", len(order), begin)
        with tarfile.open(paths[0]) as tar:
            begin = time.process_time()
            members = sum(1 for _ in tar)
        timed("members listed by tarfile, for comparison", members, begin)


if __name__ == "__main__":
    main()
