"""The pictures of docs/data.md: a sample of each format beside the document that the model sees.

`python tests/helpers/data_pictures.py` writes them. Each sample is written from the digits in its true format. The data
set of the recipe line reads it, in a run of `digits/stage2`. The left side shows what is in the files.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from PIL import Image as PIL

from document_svg import Break, Figure, Item, Words, beside
from dreamkit.document import Document, Image, Text
from dreamkit.errors import count
from dreamkit.inspection.pieces import turns
from dreamkit.inspection.run_data import open_run
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from dreamkit_digits import digits
from table_files import coco_name, write_coco_captions, write_obelics, write_pairs, write_png
from tar_files import digit_metadata, encoded, mmc4_members, write_img2dataset, write_tar

FOLDER = Path(__file__).parents[2] / "docs" / "images"
MOST_BYTES = 60_000  # of a picture

Sample = tuple[dict[str, Any], str, list[Item]]  # settings of the data set, head of the left side, its items


def pairs(folder: Path) -> Sample:
    write_png(folder, "digits/two.png", 2)
    (folder / "digits" / "two.txt").write_text("a small two\n")
    items = [
        item for file in sorted((folder / "digits").iterdir()) for item in shown(file.name, file.read_bytes())
    ]
    return {"path": "digits"}, "the folder digits/", items


def tars(folder: Path) -> Sample:
    (file,) = write_img2dataset(folder, [[digit_metadata(3)]])
    items = list(members(file, keys=("url", "caption", "status", "width")))
    return {"path": file.name}, "a sample of 00000.tar", items


def table(folder: Path) -> Sample:
    file = write_pairs(folder / "pairs.parquet", [4])
    row = pq.read_table(file).to_pylist()[0]
    items = [
        *named("image", "struct"),
        *pixels("bytes:", row["image"]["bytes"]),
        *line(f'path: "{row["image"]["path"]}"'),
        *named("caption", "string"),
        *line(json.dumps(row["caption"])),
    ]
    return {"path": file.name, "direction": "read"}, "row 0 of pairs.parquet", items


def coco(folder: Path) -> Sample:
    number = 5
    write_png(folder, f"val2017/{coco_name(number)}", number)
    file = write_coco_captions(folder / "captions_val2017.json", {number: ["A five.", "A thin five."]})
    value = json.loads(file.read_text())
    items = list(named(file.name, ""))
    for key, kept in (("images", ("id", "file_name", "license")), ("annotations", ("image_id", "caption"))):
        for entry in value[key]:
            items += line(f'"{key}": {shortened(entry, kept)}')
    image = folder / "val2017" / coco_name(number)
    items += shown(f"val2017/{image.name}", image.read_bytes())
    return {"path": file.name, "images": "val2017"}, "an image of COCO", items


def interleaved(folder: Path) -> Sample:
    record = {"text": "After one <image> comes two <image> and then three.", "images": ["1.png", "2.png"]}
    return {"path": "pages.jsonl"}, *records(folder, "pages.jsonl", record, (1, 2))


def mmc4(folder: Path) -> Sample:
    six, seven = (Image(digits.load("train").image(number), draw=True) for number in (6, 7))
    texts = (Text("Six, seven:"), Text("Both are digits."), Text("The end."))
    document = Document((texts[0], six, seven, *texts[1:]))
    file = write_tar(folder / "00000.tar", mmc4_members("000000000", document))
    strip_flags(file)
    items = list(members(file, keys=("text_list", "image_info"), of_lists=INFO))
    return {"path": file.name}, "a sample of 00000.tar", items


def obelics(folder: Path) -> Sample:
    file = write_obelics(folder / "train.parquet", [[8, "An eight.", "Then a nine:", 9]])
    row = pq.read_table(file).to_pylist()[0]
    items: list[Item] = []
    for column in ("images", "texts"):
        items += named(column, "list<binary>" if column == "images" else "list<string>")
        items.append(Words("["))
        for number, value in enumerate(row[column]):
            items.append(Words(", " if number else ""))
            is_image = isinstance(value, bytes)
            items.append(Figure(PIL.open(io.BytesIO(value))) if is_image else Words(json.dumps(value)))
        items.append(Words("]"))
    return {"path": file.name, "draw": False}, "row 0 of train.parquet", items


def conversations(folder: Path) -> Sample:
    turns = [
        ("human", "<image>\nWhat is it?"),
        ("gpt", "a three"),
        ("human", "Draw a two."),
        ("gpt", "<image>"),
    ]
    record = {
        "image": ["3.png", "2.png"],
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
    }
    return {"path": "chats.jsonl"}, *records(folder, "chats.jsonl", record, (3, 2))


def huggingface(folder: Path) -> Sample:
    import datasets

    features = datasets.Features(
        {key: datasets.Value("string") for key in ("question", "answer")} | {"image": datasets.Image()}
    )
    picture = digits.load("train").image(1)
    row = {"question": ["Which digit?"], "answer": ["a one"], "image": [picture]}
    datasets.Dataset.from_dict(row, features).save_to_disk(folder / "vqa")
    read = datasets.load_from_disk(folder / "vqa")[0]
    items = [*named("image", "Image"), Figure(read["image"])]
    for column in ("question", "answer"):
        items += [*named(column, "string"), *line(json.dumps(read[column]))]
    return {"path": "vqa", "template": "{image} {question}", "answer": "{answer}"}, "row 0 of vqa/", items


FORMATS: dict[str, Callable[[Path], Sample]] = {
    sample.__name__: sample
    for sample in (pairs, tars, table, coco, interleaved, mmc4, obelics, conversations, huggingface)
}
INFO = ("image_name", "matched_text_index", "matched_sim")  # keys of an image of MMC4 that are shown


def named(name: str, kind: str) -> Iterator[Item]:
    """Yield the name of a file or column on a line of its own."""
    yield from (Break(), Words(name, "ink"), Words(f"  {kind}" if kind else ""), Break(2))


def line(text: str) -> Iterator[Item]:
    """Yield a line of text below a name."""
    yield from (Break(2, hang=2), Words(text))


def pixels(text: str, data: bytes) -> Iterator[Item]:
    """Yield a text and the image whose file is `data`."""
    yield from (Break(2), Words(f"{text} "), Figure(PIL.open(io.BytesIO(data))))


def shown(name: str, data: bytes) -> Iterator[Item]:
    """Yield the name of a file and what is in it, an image or a text."""
    yield from named(name, "")
    if name.endswith((".png", ".jpg")):
        yield Figure(PIL.open(io.BytesIO(data)))
    else:
        yield Words(data.decode().strip())


def shortened(value: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Return some keys of a JSON object, with `...` for the others."""
    some = json.dumps({key: value[key] for key in keys}, ensure_ascii=False)
    return some if set(value) == set(keys) else f"{some[:-1]}, ...}}"


def members(file: Path, keys: tuple[str, ...], of_lists: tuple[str, ...] = ()) -> Iterator[Item]:
    """Yield the members of a tar, of a `.json` some keys; of the objects in its lists `of_lists`."""
    with tarfile.open(file) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            data = stream.read()
            if not member.name.endswith(".json"):
                yield from shown(member.name, data)
                continue
            yield from named(member.name, "")
            value = json.loads(data)
            if not of_lists:
                yield Words(shortened(value, keys))
            for key in keys if of_lists else ():
                for number, each in enumerate(value[key]):
                    text = shortened(each, of_lists) if isinstance(each, dict) else json.dumps(each)
                    start = f'"{key}": [' if number == 0 else "  "
                    yield from line(start + text + ("]" if number == len(value[key]) - 1 else ","))


def strip_flags(file: Path) -> None:
    """Remove from a tar of MMC4 the flags of images that the release does not have."""
    with tarfile.open(file) as tar:
        content = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    record = json.loads(content[0][1])
    for info in record["image_info"]:
        for flag in ("draw", "read", "train_on"):
            del info[flag]
    write_tar(file, [(content[0][0], json.dumps(record).encode()), *content[1:]])


def records(
    folder: Path, file: str, record: dict[str, Any], images: tuple[int, ...]
) -> tuple[str, list[Item]]:
    """Write a record and the digits that it names; return the head and the items of the left side."""
    (folder / file).write_text(json.dumps(record) + "\n")
    items: list[Item] = []
    for key, value in json.loads((folder / file).read_text()).items():
        items += named(f'"{key}":', "")
        is_chat = isinstance(value, list) and isinstance(value[0], dict)
        for each in value if is_chat else [value]:
            items += line(json.dumps(each))
    for number in images:
        (folder / f"{number}.png").write_bytes(encoded(digits.load("train").image(number)))
        items += shown(f"{number}.png", (folder / f"{number}.png").read_bytes())
    return f"line 1 of {file}, and its images", items


def picture(name: str, folder: Path) -> str:
    """Return the SVG of a format; its files are written into the new folder."""
    settings, head, items = FORMATS[name](folder)
    section = yaml.safe_dump(
        {"name": name, **settings}, default_flow_style=True, sort_keys=False, width=1000
    ).strip()
    items += [*named("in the recipe", ""), *line(section)]
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"extends: digits/stage2\ndata:\n  - {section}\n")
    registry = Registry.load()
    run = open_run(load_recipe(str(recipe), [], registry), registry)
    place = run.place(0)
    document, sequence = place.document, place.sequence
    assert document is not None and sequence is not None, place.problem
    about = [
        f"document: {count(len(sequence), 'token')}",
        f"{sequence.targets} learned",
        f"{len(sequence.reads)} read",
        f"{len(sequence.draws)} drawn",
    ]
    return beside(
        items,
        turns(document, sequence, run.sequencer),
        title=f"A sample of the data set {name}, and its document as the model sees it",
        heads=(head, " · ".join(about)),
    )


def path(name: str) -> Path:
    """Return the file of a picture."""
    return FOLDER / f"data-{name}.svg"


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DREAMKIT_CACHE_FOLDER"] = f"{folder}/cache"
        for name in FORMATS:
            (files := Path(folder, name)).mkdir()
            path(name).write_text(picture(name, files), encoding="utf-8")
            print(path(name), path(name).stat().st_size)


if __name__ == "__main__":
    main()
