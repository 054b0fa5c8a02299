"""Tables of digits in the formats that people have: Parquet as `datasets` writes it, OBELICS, COCO's JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dreamkit_digits import digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLUMNS = {"image": "image", "caption": "caption"}  # that data sets of pairs read
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the feature Image of `datasets`


@cache
def png(index: int) -> bytes:
    """Return the PNG of digit `index`."""
    file = io.BytesIO()
    digits.load("train").image(index).save(file, "PNG")
    return file.getvalue()


def name(index: int) -> str:
    """Return the name of digit `index`."""
    return NAMES[digits.load("train").labels[index]]


def write_parquet(path: Path, columns: dict[str, Any], rows: int = 3, **settings: Any) -> Path:
    """Write a Parquet file with `rows` rows in each row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows, **settings)
    return path


def write_pairs(path: Path, indices: Sequence[int], rows: int = 3, **more: Any) -> Path:
    """Write digits with captions, as `datasets` writes them: a struct of bytes and path."""
    images = [{"bytes": png(index), "path": f"{index}.png"} for index in indices]
    columns = {"image": pa.array(images, IMAGE), "caption": [f"a {name(index)}" for index in indices]}
    return write_parquet(path, columns | more, rows)


def write_png(folder: Path, path: str, index: int) -> None:
    """Write digit `index` as a file."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(png(index))


def write_obelics(path: Path, documents: Sequence[Sequence[str | int | None]], **settings: Any) -> Path:
    """Write documents of texts and digits in the columns of OBELICS, with bytes in place of addresses.

    A negative number is the address of an image, and None an image that is lost.
    """
    images, texts, metadata = [], [], []
    for places in documents:
        addresses = [None if isinstance(place, str) else f"https://a.org/{place}.png" for place in places]
        images.append([png(place) if isinstance(place, int) else None for place in places])
        texts.append([place if isinstance(place, str) else None for place in places])
        metadata.append(
            json.dumps([address and {"src": address, "alt_text": "a digit"} for address in addresses])
        )
    columns = {
        "images": pa.array(images, pa.list_(pa.binary())),
        "metadata": metadata,
        "general_metadata": [
            json.dumps({"url": f"https://a.org/{n}", "warc_filename": "w"}) for n in range(len(texts))
        ],
        "texts": pa.array(texts, pa.list_(pa.string())),
    }
    return write_parquet(path, columns, **settings)


def coco_name(number: int, split: str = "val2017") -> str:
    """Return the name of an image of COCO."""
    return f"{number:012d}.jpg" if split.endswith("2017") else f"COCO_{split}_{number:012d}.jpg"


def write_coco_captions(path: Path, captions: dict[int, list[str]], split: str = "val2017") -> Path:
    """Write captions of images by their numbers, as COCO's `captions_val2017.json`."""
    images = [
        {
            "license": 4,
            "file_name": coco_name(number, split),
            "coco_url": f"http://images.cocodataset.org/{split}/{coco_name(number, split)}",
            "height": 16,
            "width": 16,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://farm7.staticflickr.com/6116/a.jpg",
            "id": number,
        }
        for number in captions
    ]
    pairs = [(number, caption) for number, texts in captions.items() for caption in texts]
    annotations = [
        {"image_id": number, "id": 38 + place, "caption": caption}
        for place, (number, caption) in enumerate(pairs)
    ]
    licenses = [
        {"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}
    ]
    value = {"info": {"year": 2017}, "images": images, "licenses": licenses, "annotations": annotations[::-1]}
    path.write_text(json.dumps(value))
    return path


def write_karpathy(path: Path, captions: dict[int, list[str]], splits: dict[int, str]) -> Path:
    """Write captions of images by their numbers, as Karpathy's `dataset_coco.json`."""
    images = [
        {
            "filepath": "val2014",
            "sentids": list(range(len(texts))),
            "filename": coco_name(number, "val2014"),
            "imgid": place,
            "split": splits[number],
            "sentences": [
                {"tokens": text.rstrip(".").lower().split(), "raw": text, "imgid": place, "sentid": n}
                for n, text in enumerate(texts)
            ],
            "cocoid": number,
        }
        for place, (number, texts) in enumerate(captions.items())
    ]
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def write_narratives(path: Path, narratives: Sequence[tuple[int, str]]) -> Path:
    """Write narratives of images by their numbers, as Localized Narratives of COCO."""
    lines = [
        {
            "dataset_id": "mscoco_val2017",
            "image_id": str(number),
            "annotator_id": 93,
            "caption": caption,
            "timed_caption": [
                {"utterance": word, "start_time": 0.1, "end_time": 0.4} for word in caption.split()
            ],
            "traces": [[{"x": 0.2, "y": -0.1, "t": 0.0}]],
            "voice_recording": f"coco_val/coco_val_{number}_93.ogg",
        }
        for number, caption in narratives
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
