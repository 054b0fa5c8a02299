"""The manifest of a folder: a JSON file with the kind of the folder and a record of each file in it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints, is_typeddict

from dreamkit.errors import DreamkitError, describe_error, excerpt, printable, surrogate_problem
from dreamkit.storage.folders import (
    NOT_UTF8,
    FileRecord,
    damaged_files,
    in_use_reason,
    partial_folder,
    replaced_folder,
)
from dreamkit.storage.json_files import json_object
from dreamkit.storage.tensor_files import unreadable
from dreamkit.storage.writing import write_text

_TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", list: "a list"}


@dataclass(frozen=True)
class FolderManifest(ABC):
    """The content of a manifest. Each kind of folder has a subclass with fields of its own.

    `KIND` names the kind of folder in messages, and `FILE` is the name of its manifest. `FORMAT` is the newest format,
    `OLDEST` the oldest that can be read, and `ERROR` the type of its errors.

    `dreamkit` is the version that wrote the folder. `files` has size and sha256 of every other file in it.
    """

    KIND: ClassVar[str]
    FILE: ClassVar[str]
    FORMAT: ClassVar[int]
    OLDEST: ClassVar[int] = 1
    ERROR: ClassVar[type[DreamkitError]]

    format: int
    dreamkit: str
    files: dict[str, FileRecord]

    @classmethod
    @abstractmethod
    def find_hint(cls, folder: Path) -> str:
        """Return the end of an error message about a `folder` that is missing or of another kind."""

    @classmethod
    @abstractmethod
    def repair_hint(cls, folder: Path) -> str:
        """Return the end of an error message about a damaged `folder`."""

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a manifest, of any format up to the newest, in the newest format."""
        return data

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each contradiction in the manifest, whose types are right."""
        if self.format < 1:
            yield f"format: expected at least 1, got {self.format}"
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                yield f"files: '{name}' is not inside the {self.KIND}"

    def content(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        content = asdict(self)
        content["files"] = content.pop("files")  # the longest part last
        return content

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        content = self.content()
        text = json.dumps(content, indent=2, ensure_ascii=False)
        # The paths of data may have bytes that are not UTF-8; as lone surrogates, these have escapes in JSON.
        text = text.encode(errors="backslashreplace").decode()
        write_text(folder / self.FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of `folder`, but no other file.

        Raises:
            DreamkitError: `ERROR`: no such folder, another kind, a format that is not read, or a damaged manifest.
        """
        path = folder / cls.FILE
        if surrogate_problem(str(folder.absolute())):
            raise cls.ERROR(f"{folder} {NOT_UTF8}; rename its folders")
        if not path.is_file():
            raise cls.ERROR(cls._missing(folder))
        try:
            data = json_object(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise cls.ERROR(f"{path}: {unreadable(error)}") from error
        except ValueError as error:
            raise cls.damaged(folder, [describe_error(error)], at=path) from error
        cls._refuse_version(folder, data)
        data = cls.upgrade(data)
        types = get_type_hints(cls)
        problems = [*schema_errors(data, {field.name: types[field.name] for field in fields(cls)})]
        if not problems:
            manifest = cls(**data)
            problems = [*manifest.contradictions()]
        if problems:
            raise cls.damaged(folder, problems, at=path)
        return manifest

    def verify(self, folder: Path, *, read: bool = True) -> None:
        """Compare the files of `folder` with the manifest: their sizes and, if `read`, their hashes.

        Raises:
            DreamkitError: `ERROR`: files are missing or changed; the message lists all of them.
        """
        try:
            problems = damaged_files(folder, self.files, read=read)
        except OSError as error:
            problems = [f"{error.filename}: {unreadable(error)}"]
        if problems:
            raise self.damaged(folder, problems)

    @classmethod
    def damaged(cls, folder: Path, problems: Iterable[str], *, at: Path | None = None) -> DreamkitError:
        """Return the error about a damaged `folder`, with a line for each of `problems`."""
        listed = "".join(f"\n  {printable(problem)}" for problem in problems)
        return cls.ERROR(f"{at or folder}: the {cls.KIND} is damaged; {cls.repair_hint(folder)}{listed}")

    @classmethod
    def refuse_to_replace(cls, folder: Path, *, instead: str = "name another folder") -> None:
        """Raise if writing `folder` would replace anything but a folder of this kind; `instead` is the hint.

        Raises:
            DreamkitError: `ERROR`: `folder` is a file, or a folder with other files in it.
        """
        reason = in_use_reason(folder)
        if reason and not (folder / cls.FILE).is_file():
            raise cls.ERROR(f"{folder} {reason}, and is not a {cls.KIND}; {instead}, or remove it")

    @classmethod
    def _missing(cls, folder: Path) -> str:
        for other in (replaced_folder(folder), partial_folder(folder)):
            if not folder.exists() and (other / cls.FILE).is_file():
                return (
                    f"{folder}: missing, but an interrupted save left {other}; rename that to {folder.name}"
                )
        if folder.is_dir():
            reason = f"it has no {cls.FILE}"
        else:
            reason = "it is a file" if folder.exists() else "there is no such folder"
        return f"{folder} is not a {cls.KIND}: {reason}; {cls.find_hint(folder)}"

    @classmethod
    def _refuse_version(cls, folder: Path, data: Mapping[str, Any]) -> None:
        version = data.get("format")
        if type(version) is not int or version < 1 or cls.OLDEST <= version <= cls.FORMAT:
            return
        writer = excerpt(str(data.get("dreamkit", "?")))
        origin = f"format version {excerpt(str(version))}, written by dreamkit {writer}"
        if version > cls.FORMAT:
            limit, hint = f"up to {cls.FORMAT}", "install a newer dreamkit-core"
        else:
            limit, hint = f"from {cls.OLDEST} on", cls.repair_hint(folder)
        raise cls.ERROR(f"{folder / cls.FILE}: {origin}, but this dreamkit reads versions {limit}; {hint}")


def schema_errors(value: Any, expected: Any, key: str = "") -> Iterator[str]:
    """Yield a line for each place where `value`, read from JSON, does not have the type `expected`.

    A dict of types by key stands for a record, as a TypedDict does.
    """
    if expected is Any:
        return
    if is_typeddict(expected):
        expected = get_type_hints(expected)
    at, prefix = key or "the manifest", f"{key}." if key else ""
    if isinstance(expected, dict) and isinstance(value, dict):
        if differing := sorted(expected.keys() ^ value.keys()):
            yield f"{at}: missing or unknown: {', '.join(differing)}"
        for name in sorted(expected.keys() & value.keys()):
            yield from schema_errors(value[name], expected[name], prefix + name)
    elif get_origin(expected) is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from schema_errors(item, get_args(expected)[1], prefix + name)
    elif get_origin(expected) is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from schema_errors(item, get_args(expected)[0], f"{prefix}{index}")
    elif type(value) is int is expected and abs(value) >= 2**63:
        yield f"{at}: expected an integer of at most 64 bits, got {excerpt(str(value))}"
    elif type(value) is not expected:
        kind = dict if isinstance(expected, dict) else get_origin(expected) or expected
        yield f"{at}: expected {_TYPE_NAMES.get(kind, 'an object')}, got {json.dumps(value):.60}"
