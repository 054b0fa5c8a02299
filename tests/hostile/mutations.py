"""Hostile contents of files: what hypothesis makes of a real file's bytes, in the file's own format or in none."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from dreamkit.storage.folders import sha256
from releases.using import MANIFESTS

RAW = "@raw@"  # a string in a JSON value, which `Raw` text replaces
ENTRIES = ("missing", "folder", "named pipe", "link to itself")


@dataclass(frozen=True)
class Raw:
    """A value that Python's writers of JSON refuse or take long to write."""

    name: str
    text: str

    def __repr__(self) -> str:
        return self.name


RAWS = (
    Raw("100,000 nested lists", "[" * 10**5 + "]" * 10**5),
    Raw("900 nested lists", "[" * 900 + "]" * 900),
    Raw("100,000 nested sections", '{"a":' * 10**5 + "1" + "}" * 10**5),
    Raw("an integer of 5,000 digits", "9" * 5000),
    Raw("an exponent of 400 digits", "1e" + "9" * 400),
    Raw("a key that is set twice", '{"name": 1, "name": 2}'),
    Raw("lone surrogates", '"\\ud800\\udc00\\udfff"'),
)
LEAVES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 3, 7, 2.5, -0.5, 0.0, 1e308, float("nan"), float("inf")),
        *(2**31, 2**63, 10**12, 10**30, "", " ", "x", "3", "true", "\x00", "\x1b[2J", "../x", "/", ".", "~"),
        *("None", "auto", "linear", "llama", "float16", "x" * 5000),
    ]
)
VALUES = st.recursive(
    LEAVES | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(
            st.sampled_from(["", "name", "path", "0", "a.b"]) | st.text(max_size=4), inside, max_size=4
        )
    ),
    max_leaves=6,
) | st.sampled_from(RAWS)


@dataclass(frozen=True)
class Mutation:
    """One change: its `kind`, a `place` that is counted modulo the places of the file, and a `value`."""

    kind: str
    place: int = 0
    value: Any = None

    def content(self, original: bytes, suffix: str) -> bytes:
        """Return the changed content of a file with this suffix."""
        place = self.place % (len(original) + 1)
        match self.kind:
            case "bytes":
                return bytes(self.value)
            case "inserted bytes":
                return original[:place] + self.value + original[place:]
            case "cut":
                return original[:place]
            case "flipped bit":
                byte = original[place : place + 1] or b"\0"
                return original[:place] + bytes([byte[0] ^ 1 << self.value]) + original[place + 1 :]
        return FORMATS.get(suffix, changed_lines)(original, self)


def changed_tree(tree: Any, mutation: Mutation) -> Any:
    """Return a tree with one place replaced, removed, renamed, wrapped, written as a string or repeated."""
    places = list(places_in(tree))
    path = places[mutation.place % len(places)]

    def change(value: Any) -> Any:
        match mutation.kind:
            case "wrap":
                return [value]
            case "nest":
                return {"x": value}
            case "string":
                return json.dumps(value, default=str)
            case "repeat":
                return [value] * 50
            case _:
                return mutation.value

    def at(value: Any, steps: tuple[Any, ...]) -> Any:
        if not steps:
            return change(value)
        step, rest = steps[0], steps[1:]
        if isinstance(value, list):
            inner = [] if mutation.kind == "remove" and not rest else [at(value[step], rest)]
            return [*value[:step], *inner, *value[step + 1 :]]
        copied = dict(value)
        if mutation.kind == "remove" and not rest:
            del copied[step]
        elif mutation.kind == "rename" and not rest:
            copied[f"{step}x"] = copied.pop(step)
        else:
            copied[step] = at(value[step], rest)
        return copied

    return at(tree, path)


def places_in(tree: Any, path: tuple[Any, ...] = (), most: int = 40) -> Iterator[tuple[Any, ...]]:
    """Yield the paths to all values in a tree; of long lists and sections, to those of the first `most`."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for (step, item), _ in zip(items, range(most), strict=False):
        yield from places_in(item, (*path, step), most)


def with_raw(value: Any, write: Callable[[Any], str]) -> str:
    """Write a value with the texts of its `Raw` values."""
    texts: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            texts.append(value.text)
            return RAW
        if isinstance(value, dict):
            return {key: marked(item) for key, item in value.items()}
        return [marked(item) for item in value] if isinstance(value, list) else value

    text = write(marked(value))
    for raw in texts:
        text = text.replace(f'"{RAW}"', raw, 1).replace(f"'{RAW}'", raw, 1)
    return text


def changed_json(original: bytes, mutation: Mutation) -> bytes:
    text = with_raw(changed_tree(json.loads(original), mutation), json.dumps)
    return text.encode("utf-8", "surrogatepass")


def changed_yaml(original: bytes, mutation: Mutation) -> bytes:
    tree = changed_tree(yaml.safe_load(original), mutation)
    return with_raw(tree, lambda value: yaml.safe_dump(value, sort_keys=False)).encode(
        "utf-8", "surrogatepass"
    )


def changed_record(original: bytes, mutation: Mutation) -> bytes:
    lines = original.splitlines()
    number = mutation.place % len(lines)
    lines[number] = changed_json(lines[number], mutation)
    return b"\n".join(lines) + b"\n"


def changed_header(original: bytes, mutation: Mutation) -> bytes:
    """Change the header of a safetensors file, with the right length."""
    (length,) = struct.unpack("<Q", original[:8])
    header = changed_json(original[8 : 8 + length], mutation)
    return struct.pack("<Q", len(header)) + header + original[8 + length :]


def changed_lines(original: bytes, mutation: Mutation) -> bytes:
    """Change a line of a file without a format: remove it, or write a value in its place."""
    lines = original.split(b"\n")
    number = mutation.place % len(lines)
    new = with_raw(mutation.value, json.dumps).encode("utf-8", "surrogatepass")
    lines[number : number + 1] = [] if mutation.kind == "remove" else [new]
    return b"\n".join(lines)


FORMATS = {
    ".json": changed_json,
    ".jsonl": changed_record,
    ".yaml": changed_yaml,
    ".safetensors": changed_header,
}


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Generate a mutation: most change one value, others the bytes, and few the entry in the folder."""
    place = draw(st.integers(0, 10**6))
    kind = draw(
        st.sampled_from(
            [
                *("replace",) * 10,
                *("remove", "rename", "wrap", "nest", "string", "repeat") * 2,
                *("bytes", "inserted bytes", "cut", "flipped bit"),
                draw(st.sampled_from(ENTRIES)),
            ]
        )
    )
    match kind:
        case "bytes" | "inserted bytes":
            return Mutation(kind, place, draw(st.binary(max_size=40)))
        case "flipped bit":
            return Mutation(kind, place, draw(st.integers(0, 7)))
        case "replace":
            return Mutation(kind, draw(st.sampled_from([0, place, place, place])), draw(VALUES))
    return Mutation(kind, place)


@contextmanager
def mutated(path: Path, mutation: Mutation) -> Iterator[None]:
    """Change a file, or put another entry into its place, until the end."""
    original = path.read_bytes()
    if mutation.kind not in ENTRIES:
        path.write_bytes(mutation.content(original, path.suffix))
    else:
        path.unlink()
        if mutation.kind == "folder":
            path.mkdir()
        elif mutation.kind == "named pipe":
            os.mkfifo(path)
        elif mutation.kind == "link to itself":
            path.symlink_to(path)
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)  # the command may have replaced the folder
        path.write_bytes(original)


@contextmanager
def right_hash(folder: Path, path: Path) -> Iterator[None]:
    """Write size and hash of a changed file into the manifest of its folder, until the end."""
    if path.name in MANIFESTS or not (path.is_file() and path.is_relative_to(folder)):
        yield
        return
    (manifest,) = (file for name in MANIFESTS if (file := folder / name).is_file())
    original = manifest.read_bytes()
    content = json.loads(original)
    record = {"size": path.stat().st_size, "sha256": sha256(path)}
    content["files"][path.relative_to(folder).as_posix()] = record
    manifest.write_text(json.dumps(content))
    try:
        yield
    finally:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_bytes(original)
