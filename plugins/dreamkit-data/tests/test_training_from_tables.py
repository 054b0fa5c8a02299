"""Training from tables: the losses of the same documents in plain files, and bad rows that are skipped."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from runs import training_losses
from table_files import (
    IMAGE,
    coco_name,
    name,
    png,
    write_coco_captions,
    write_obelics,
    write_pairs,
    write_parquet,
)

SETTINGS = ("train.steps=3", "train.log_every=1", "train.global_batch=4", "train.warmup=0")
INDICES = range(10)


def losses(folder: Path, *data: str, **settings: str) -> list[Any]:
    recipe, out = folder / f"{len(list(folder.iterdir()))}.yaml", folder / f"run{len(list(folder.iterdir()))}"
    recipe.write_text("extends: digits/stage2\ndata:\n" + "".join(f"  - {section}\n" for section in data))
    changes = [*SETTINGS, *(f"{key}={value}" for key, value in settings.items())]
    found = training_losses(str(recipe), out, changes)
    assert len(found) == 3
    return found


def test_pairs_of_any_table_train_with_the_losses_of_plain_files(tmp_path: Path) -> None:
    captions = [f"a {name(index)}" for index in INDICES]
    for index in INDICES:
        (tmp_path / coco_name(index)).write_bytes(png(index))
    lines = [
        json.dumps({"image": coco_name(index), "caption": caption})
        for index, caption in zip(INDICES, captions, strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    write_pairs(tmp_path / "pairs.parquet", INDICES)
    rows = [f"{base64.b64encode(png(index)).decode()}\t{captions[index]}" for index in INDICES]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    write_coco_captions(tmp_path / "captions.json", {index: [captions[index]] for index in INDICES})
    expected = losses(tmp_path, "{name: pairs, path: pairs.jsonl}")
    assert losses(tmp_path, "{name: table, path: pairs.parquet}") == expected
    text = "{name: table, path: pairs.tsv, header: false, image: 0, caption: 1, base64: true}"
    assert losses(tmp_path, text) == expected
    assert losses(tmp_path, "{name: coco, path: captions.json}") == expected


def test_documents_of_obelics_train_with_the_losses_of_plain_files(tmp_path: Path) -> None:
    documents: list[list[str | int | None]] = [
        [f"a {name(index)}", index, "and", index + 1] for index in INDICES
    ]
    write_obelics(tmp_path / "web.parquet", documents)
    lines = []
    for _, first, _, second in documents:
        for index in (first, second):
            (tmp_path / f"{index}.png").write_bytes(png(index))
        text = f"a {name(first)} <image> and <image>"
        lines.append(json.dumps({"text": text, "images": [f"{first}.png", f"{second}.png"]}))
    (tmp_path / "web.jsonl").write_text("\n".join(lines))
    expected = losses(tmp_path, "{name: interleaved, path: web.jsonl}")
    assert losses(tmp_path, "{name: obelics, path: web.parquet}") == expected


def test_a_bad_row_is_skipped_with_its_file_row_and_column(tmp_path: Path) -> None:
    images = [{"bytes": png(index) if index != 1 else b"no image", "path": None} for index in INDICES]
    columns = {"image": pa.array(images, IMAGE), "caption": [f"a {name(index)}" for index in INDICES]}
    file = write_parquet(tmp_path / "pairs.parquet", columns)
    losses(tmp_path, "{name: table, path: pairs.parquet, shuffle: blocks}")
    (skipped,) = tmp_path.glob("run*/skipped.jsonl")
    records = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert records
    for record in records:
        assert (record["shard"], record["member"]) == (str(file), "1")
        assert record["reason"].startswith("image: cannot read the image")
