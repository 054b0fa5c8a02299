"""The core's data sets fulfil their contract, for each format. A new one adds a line to `EXAMPLES`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from PIL import Image as PIL

from contract_tests import contract_test
from dreamkit.data.conversations import Conversations, ConversationsConfig
from dreamkit.data.document_records import document_record
from dreamkit.data.examples import COLOURS, write_images, write_lines
from dreamkit.data.interleaved import Interleaved, InterleavedConfig
from dreamkit.data.pairs import Pairs, PairsConfig
from dreamkit.document import Document, Image, Text
from dreamkit.testing import contracts


def write_folder(folder: Path) -> PairsConfig:
    """Write images, each beside its caption."""
    for image, colour in zip(write_images(folder), COLOURS, strict=True):
        (folder / image).with_suffix(".txt").write_text(f"a {colour} square\n")
    return PairsConfig(folder, direction="read")


def write_gzip(folder: Path) -> PairsConfig:
    """Write compressed JSON Lines."""
    path = Pairs.tiny_config(folder).path
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return PairsConfig(packed)


def write_array(folder: Path) -> PairsConfig:
    """Write one array of records, whose images are in a folder of their own."""
    images = [image.removeprefix("images/") for image in write_images(folder)]
    records = [{"file": image, "text": f"{number}"} for number, image in enumerate(images)]
    (folder / "pairs.json").write_text(json.dumps(records, indent=1))
    return PairsConfig(folder / "pairs.json", images=folder / "images", image="file", caption="text")


def write_records(folder: Path) -> InterleavedConfig:
    """Write documents as records that `dreamkit data preview --jsonl` prints: with paths, data URLs and turns."""
    write_images(folder)
    pictures = [PIL.new("RGB", (4, 4), colour) for colour in COLOURS]
    documents = [
        Document((Text("red"), Image(pictures[0], draw=True)), name="one"),
        Document(
            (Text("What?", role="user"), Image(pictures[1], role="user"), Text("green", role="assistant"))
        ),
    ]
    records = [document_record(document) for document in documents]
    records.append(
        {"content": [{"type": "image", "image": "images/blue.png"}, {"type": "text", "text": "blue"}]}
    )
    return InterleavedConfig(write_lines(folder / "documents.jsonl", records))


def write_sharegpt(folder: Path) -> ConversationsConfig:
    red, green, _ = write_images(folder)
    records = [
        {"images": [red, green], "messages": turns("<image> or <image>?", "Red or green.")},
        {"messages": turns("Hello.", "Hi.")},
    ]
    return ConversationsConfig(write_lines(folder / "sharegpt.jsonl", records))


def write_messages(folder: Path) -> ConversationsConfig:
    """Write OpenAI's messages, whose images are parts of turns."""
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": write_images(folder)[0]}},
    ]
    records = [{"messages": turns(parts, "A red square.")}, {"messages": turns("Hello.", "Hi.")}]
    return ConversationsConfig(write_lines(folder / "messages.jsonl", records))


def turns(question: Any, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


EXAMPLES = {
    "pairs": contracts.tiny_dataset(Pairs),
    "pairs in a folder": contracts.tiny_dataset(Pairs, write_folder),
    "pairs in gzip": contracts.tiny_dataset(Pairs, write_gzip),
    "pairs in an array": contracts.tiny_dataset(Pairs, write_array),
    "interleaved": contracts.tiny_dataset(Interleaved),
    "interleaved records": contracts.tiny_dataset(Interleaved, write_records),
    "llava": contracts.tiny_dataset(Conversations),
    "sharegpt": contracts.tiny_dataset(Conversations, write_sharegpt),
    "openai": contracts.tiny_dataset(Conversations, write_messages),
}

test_contract = contract_test(EXAMPLES)
