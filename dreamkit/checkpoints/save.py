"""Saving of a model as a checkpoint folder, which appears only when complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from dreamkit.checkpoints.components import component_records
from dreamkit.checkpoints.content import Content, TensorFile, portable_files, saved_content, whole_bytes
from dreamkit.checkpoints.manifest import Manifest, SourceRecord, adapter_file
from dreamkit.distributed import is_main, together, whole
from dreamkit.errors import CheckpointError
from dreamkit.model.adapters import write_adapter_config
from dreamkit.model.model import DreamModel
from dreamkit.recipe.written import as_written
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import FileRecord, atomic_folder, describe_files, partial_folder
from dreamkit.storage.paths import output_folder
from dreamkit.storage.sources import fingerprint
from dreamkit.storage.tensor_writer import write_tensors
from dreamkit.storage.writing import require_space, writing


def save_checkpoint(
    model: DreamModel,
    folder: Path | str,
    *,
    registry: Registry | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` to `folder`, which appears only when complete; a checkpoint in its place is replaced.

    `beside` is called with the unfinished folder and may write more files into it. If several processes train together,
    each must call this function. Sharded tensors are gathered one by one, and the first process writes.

    Raises:
        CheckpointError: the model has no recipe, or `folder` holds other files.
        OutputError: `folder` cannot be written, or another command is writing it. All processes raise it.
    """
    folder = output_folder(folder)
    if model.recipe is None:
        raise CheckpointError("the model has no recipe to be rebuilt from; set model.recipe")
    with ExitStack() as stack:
        with together():
            if is_main():
                stack.enter_context(atomic_folder(folder))
                Manifest.refuse_to_replace(folder)
        write_checkpoint(model, partial_folder(folder), registry=registry, beside=beside)
        with together():
            stack.close()  # completes the folder


def write_checkpoint(
    model: DreamModel,
    folder: Path,
    *,
    registry: Registry | None = None,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write `model` into the empty folder of an unfinished checkpoint; see `save_checkpoint`."""
    content = saved_content(model)
    files = portable_files(model, content)
    with together():
        if is_main():
            require_space(folder, whole_bytes(tensor for file in files for tensor in file.tensors.values()))
            write_beside_tensors(model, folder, content)
    with together():
        if beside is not None:
            beside(folder)
    records: dict[str, FileRecord] = {}
    for file in files:
        with together():
            records |= write_file(folder, file)
    with together():
        if is_main():
            write_manifest(model, folder, content, records, registry)


def write_beside_tensors(
    model: DreamModel, folder: Path, content: Content, *, is_portable: bool = True
) -> None:
    """Write what a checkpoint has besides tensors and the manifest: the tokenizer and peft's configs of adapters."""
    with writing(folder / "tokenizer"):
        model.language_model.save_tokenizer(folder / "tokenizer")
    for part, tensors in content.adapters.items() if is_portable else ():
        target = (folder / adapter_file(part)).parent
        with writing(target):
            write_adapter_config(model.parts()[part], tensors, target, content.base(model, part))


def write_file(folder: Path, file: TensorFile) -> dict[str, FileRecord]:
    """Write a file of tensors, which are gathered one by one, in the main process; return its record by its name.

    Every process must call this function, and none waits for one with an error.

    Raises:
        OutputError: the file cannot be written.
    """
    path = folder / file.name if is_main() else None
    with writing(folder / file.name):
        record = write_tensors(path, file.tensors, file.metadata, read=whole)
    return {} if record is None else {file.name: record}


def write_own_files(folder: Path, files: Iterable[TensorFile]) -> dict[str, FileRecord]:
    """Write files of tensors that are not sharded, in this process alone; return their records by their names.

    Raises:
        OutputError: a file cannot be written.
    """
    records: dict[str, FileRecord] = {}
    for file in files:
        with writing(folder / file.name):
            record = write_tensors(folder / file.name, file.tensors, file.metadata, read=whole)
        assert record is not None, "a file was named"
        records[file.name] = record
    return records


def write_manifest(
    model: DreamModel,
    folder: Path,
    content: Content,
    records: Mapping[str, FileRecord],
    registry: Registry | None,
    *,
    processes: int = 1,
) -> None:
    """Write the manifest of a checkpoint whose other files are written: by one process or, in slices, by several.

    `records` describes files that need not be read again.
    """
    assert model.recipe is not None, "the caller checks it"
    sources: dict[str, SourceRecord] = {
        part: {"name": as_written(source), "files": fingerprint(source)}
        for part, source in model.sources.items()
        if source is not None
    }
    Manifest(
        format=Manifest.PORTABLE if processes == 1 else Manifest.FORMAT,
        dreamkit=version("dreamkit-core"),
        recipe=model.recipe.to_dict(),
        components=component_records(model.recipe, registry or Registry.load()),
        tokens=dict(model.token_ids),
        sources=sources,
        parts={part: len(tensors) for part, tensors in content.weights.items()},
        adapters={part: len(tensors) for part, tensors in content.adapters.items()},
        processes=processes,
        files=describe_files(folder, records),
    ).write(folder)
