"""The manifest of a folder: a JSON file that says what kind of folder it is, and which files belong in it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints, is_typeddict

from dreamkit.errors import DreamkitError
from dreamkit.storage.folders import FileRecord, damaged_files, occupied, partial_folder, replaced_folder

_WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list"}


@dataclass(frozen=True)
class FolderManifest(ABC):
    """The content of a manifest. Each kind of folder has a subclass, a dataclass that adds fields of its own.

    `KIND` is the kind of folder in words, `FILE` the name of its manifest, `FORMAT` the newest format, `OLDEST` the
    oldest that can be read, and `ERROR` the error raised about such folders.

    `dreamkit` is the version that wrote the folder. `files` gives size and sha256 of every other file in it.
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
        """Return what to do about a `folder` of another kind, or about none: the end of an error message."""

    @classmethod
    @abstractmethod
    def mend_hint(cls, folder: Path) -> str:
        """Return what to do about a damaged `folder`: the end of an error message."""

    @classmethod
    def upgrade(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a manifest of any format up to the newest as the newest has it."""
        return data

    def contradictions(self) -> Iterator[str]:
        """Yield a line for each thing in the manifest that cannot be, though its types are right."""
        if self.format < 1:
            yield f"format: {self.format} found, but the first version is 1"
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                yield f"files: '{name}' is not inside the {self.KIND}"

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        content = asdict(self)
        content["files"] = content.pop("files")  # the longest part last
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / self.FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of `folder`, and none of the other files.

        Raises:
            DreamkitError: `ERROR`: another kind of folder or none, a format that is not read, or a damaged manifest.
        """
        path = folder / cls.FILE
        if not path.is_file():
            raise cls.ERROR(cls._missing(folder))
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise cls.ERROR(
                f"{path}: not a manifest of dreamkit: {type(error).__name__}: {error}; {cls.mend_hint(folder)}"
            ) from error
        if isinstance(data, dict):
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
            DreamkitError: `ERROR`: files are missing, cut short or changed; it names all of them.
        """
        if problems := damaged_files(folder, self.files, read=read):
            raise self.damaged(folder, problems)

    @classmethod
    def damaged(cls, folder: Path, problems: Iterable[str], *, at: Path | None = None) -> DreamkitError:
        """Return the error about a `folder` that is not as it was written, with a line for each of `problems`."""
        listed = "".join(f"\n  {problem}" for problem in problems)
        return cls.ERROR(f"{at or folder}: the {cls.KIND} is damaged; {cls.mend_hint(folder)}{listed}")

    @classmethod
    def refuse_to_replace(cls, folder: Path, *, instead: str = "name another folder") -> None:
        """Raise if writing to `folder` would lose something that is not of this kind.

        Raises:
            DreamkitError: `ERROR`: it is a file, or a folder with other files in it; `instead` is what to do.
        """
        what = occupied(folder)
        if what is not None and not (folder / cls.FILE).is_file():
            raise cls.ERROR(f"{folder} {what}, and is not a {cls.KIND}; {instead}, or remove it")

    @classmethod
    def _missing(cls, folder: Path) -> str:
        for left in (replaced_folder(folder), partial_folder(folder)):
            if not folder.exists() and (left / cls.FILE).is_file():
                return f"{folder}: missing, but an interrupted save left {left}; rename that to {folder.name}"
        if folder.is_dir():
            found = f"it has no {cls.FILE}"
        else:
            found = "it is a file" if folder.exists() else "there is no such folder"
        return f"{folder} is not a {cls.KIND}: {found}; {cls.find_hint(folder)}"

    @classmethod
    def _refuse_version(cls, folder: Path, data: Mapping[str, Any]) -> None:
        version = data.get("format")
        if type(version) is not int or version < 1 or cls.OLDEST <= version <= cls.FORMAT:
            return
        origin = f"format version {version}, written by dreamkit {data.get('dreamkit', '?')}"
        if version > cls.FORMAT:
            limit, hint = f"up to {cls.FORMAT}", "install a newer dreamkit-core"
        else:
            limit, hint = f"from {cls.OLDEST} on", cls.mend_hint(folder)
        raise cls.ERROR(f"{folder / cls.FILE}: {origin}, but this dreamkit reads versions {limit}; {hint}")


def schema_errors(value: Any, wanted: Any, key: str = "") -> Iterator[str]:
    """Yield a line for each place where `value`, read from JSON, is not of the type `wanted`.

    A dict of types by key stands for a record, as a TypedDict does.
    """
    if wanted is Any:
        return
    if is_typeddict(wanted):
        wanted = get_type_hints(wanted)
    at, below = key or "the manifest", f"{key}." if key else ""
    if isinstance(wanted, dict) and isinstance(value, dict):
        if differing := sorted(wanted.keys() ^ value.keys()):
            yield f"{at}: missing or unknown: {', '.join(differing)}"
        for name in sorted(wanted.keys() & value.keys()):
            yield from schema_errors(value[name], wanted[name], below + name)
    elif get_origin(wanted) is dict and isinstance(value, dict):
        for name, item in value.items():
            yield from schema_errors(item, get_args(wanted)[1], below + name)
    elif get_origin(wanted) is list and isinstance(value, list):
        for number, item in enumerate(value):
            yield from schema_errors(item, get_args(wanted)[0], f"{below}{number}")
    elif type(value) is not wanted:
        words = (
            "an object" if isinstance(wanted, dict) else _WORDS.get(get_origin(wanted) or wanted, "an object")
        )
        yield f"{at}: {json.dumps(value):.60} found, but {words} is wanted"
