"""The writing of resume points: each process writes its own files, and the main one completes the folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from torch import Tensor
from torch.optim import AdamW

from dreamkit.checkpoints.content import (
    Content,
    TensorFile,
    portable_files,
    saved_content,
    slices,
    slices_of_model,
    whole_bytes,
)
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import write_beside_tensors, write_manifest, write_own_files
from dreamkit.distributed import gathered, is_main, rank, together, world_size
from dreamkit.model.model import DreamModel
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import atomic_folder, describe_file, partial_folder
from dreamkit.storage.writing import require_space, writing
from dreamkit.training.optimizer_state import optimizer_tensors
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_points import remove_resume_points, resume_point
from dreamkit.training.resume_state import STATE, RunState, optimizer_file


def save_resume_point(
    out: Path,
    state: RunState,
    model: DreamModel,
    optimizer: AdamW,
    random_state: RandomState,
    registry: Registry | None,
) -> None:
    """Write a resume point into the folder of a run; remove all but the last ones. Every process must call this.

    Raises:
        OutputError: the folder cannot be written. All processes raise it.
    """
    point = resume_point(out, state.step)
    partial = partial_folder(point)
    content, moments = saved_content(model), optimizer_tensors(model, optimizer)
    with ExitStack() as stack:
        with together():
            if is_main():
                stack.enter_context(atomic_folder(point))
                Manifest.refuse_to_replace(point)
                _begin(partial, state, model, content, list(moments.values()))
        with together():
            files = _own_files(model, content)
            if moments:
                files.append(slices(f"{STATE}/{optimizer_file(rank(), world_size())}", moments))
            records = write_own_files(partial, files)
            with writing(partial / STATE):
                file = random_state.save(partial / STATE)
                records[f"{STATE}/{file.name}"] = describe_file(file)
        every = gathered(records)
        with together():
            if is_main():
                merged = {name: record for each in every for name, record in each.items()}
                write_manifest(model, partial, content, merged, registry, processes=world_size())
            stack.close()  # completes the folder
    if is_main():
        remove_resume_points(out)


def _begin(
    partial: Path, state: RunState, model: DreamModel, content: Content, moments: list[Tensor]
) -> None:
    """Write what does not depend on the processes into the new folder of a resume point.

    Raises:
        OutputError: the disk has too little space for all files, or cannot be written.
    """
    groups = (*content.weights.values(), *content.adapters.values())
    tensors = [tensor for group in groups for tensor in group.values()]
    require_space(partial, whole_bytes([*tensors, *moments]))
    write_beside_tensors(model, partial, content, is_portable=world_size() == 1)
    with writing(partial / STATE):
        (partial / STATE).mkdir()
        state.write(partial / STATE)


def _own_files(model: DreamModel, content: Content) -> list[TensorFile]:
    """Return the files with the model's tensors that this process writes."""
    return portable_files(model, content) if world_size() == 1 else [slices_of_model(content)]
