"""The writing of resume points: each process writes its own files, and the main one completes the folder.

A large point is written while training goes on. The thread that does so takes no part in the meetings of the processes:
at the meeting of a step, each says whether its files are written, and after the last one the folder is completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Final

from rich.filesize import decimal
from torch import Tensor
from torch.optim import Optimizer

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
from dreamkit.distributed import gathered, is_main, local, rank, together, world_size
from dreamkit.errors import OutputError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import TrainSection
from dreamkit.registry.registry import Registry
from dreamkit.runs.run_paths import resume_point
from dreamkit.storage.folders import FileRecord, atomic_folder, describe_file, partial_folder
from dreamkit.storage.writing import require_space, writing
from dreamkit.training.optimizer_state import optimizer_tensors
from dreamkit.training.random_state import RandomState
from dreamkit.training.resume_points import remove_resume_points
from dreamkit.training.resume_state import STATE, RunState, optimizer_file
from dreamkit.training.spare_memory import has_room

LEAST_BYTES: Final = 2**26  # of a point that is written in the background: a smaller one takes a moment


class _Pending:
    """A resume point that is not complete.

    Attributes:
        partial: its unfinished folder.
        content: the tensors of the model that it has.
        stack: the block of the folder, in the main process, which completes it.
        records: the files that this process has written.
        error: the error of this process's writing.
    """

    def __init__(self, partial: Path, model: DreamModel, content: Content, stack: ExitStack) -> None:
        self.partial, self.model, self.content, self.stack = partial, model, content, stack
        self.records: dict[str, FileRecord] = {}
        self.error: Exception | None = None
        self.thread: Thread | None = None

    def write(self, files: list[TensorFile], random_state: RandomState) -> None:
        """Write this process's files. It raises nothing: a thread may run it."""
        try:
            self.records = write_own_files(self.partial, files)
            with writing(self.partial / STATE):
                file = random_state.save(self.partial / STATE)
                self.records[f"{STATE}/{file.name}"] = describe_file(file)
        except Exception as error:
            self.error = error

    def wait(self) -> None:
        """Wait until this process's files are written."""
        if self.thread is not None:
            self.thread.join()


class PointWriter:
    """The writing of the resume points of a run, one at a time.

    Args:
        out: folder of the run.
        train: its settings.
        registry: the components that manifests name.

    Attributes:
        unfit: the largest size in bytes of this process's part of a point that was written before training went on,
            because memory had no room for a copy; 0 if there was none.
    """

    def __init__(self, out: Path, train: TrainSection, registry: Registry | None) -> None:
        self.out, self.keep_last, self.keep_every = out, train.keep_last, train.keep_every
        self.registry = registry
        self.unfit = 0
        self._pending: _Pending | None = None

    def save(
        self,
        state: RunState,
        model: DreamModel,
        optimizer: Optimizer,
        random_state: RandomState,
        *,
        is_last: bool = False,
    ) -> None:
        """Write a resume point, or begin to; first finish the one before. Every process must call this method.

        A small point is complete at the return, as is one that `is_last`.

        Raises:
            OutputError: this point or the one before cannot be written. All processes raise it, and the folder is gone.
        """
        self.finish()
        point = resume_point(self.out, state.step)
        content, moments = saved_content(model), optimizer_tensors(model, optimizer)
        groups = (*content.weights.values(), *content.adapters.values(), moments)
        size = whole_bytes(tensor for group in groups for tensor in group.values())
        is_at_once = size < LEAST_BYTES or is_last
        with ExitStack() as stack:
            with together():
                if is_main():
                    partial = stack.enter_context(atomic_folder(point))
                    Manifest.refuse_to_replace(point)
                    require_space(partial, size)
                    _begin(partial, state, model, content)
            pending = self._pending = _Pending(partial_folder(point), model, content, stack.pop_all())
        try:
            self._write(pending, _own_files(model, content, moments), random_state, is_at_once=is_at_once)
        except BaseException:  # such as no memory for the copy
            self.drop()
            raise
        if is_at_once:
            self.finish()

    def _write(
        self, pending: _Pending, files: list[TensorFile], random_state: RandomState, *, is_at_once: bool
    ) -> None:
        """Write this process's files, or begin to write copies of their tensors if these fit."""
        own = whole_bytes(tensor for file in files for tensor in file.tensors.values())
        fits = is_at_once or has_room(own)
        if not fits:
            self.unfit = max(self.unfit, own)
        if is_at_once or not fits:
            pending.write(files, random_state)
        else:
            copies = [file.copied() for file in files]
            thread = Thread(target=pending.write, args=(copies, random_state), daemon=True)
            thread.start()
            pending.thread = thread

    @property
    def is_written(self) -> bool:
        """True if this process has written its files of an unfinished point, or has failed to."""
        pending = self._pending
        return pending is not None and (pending.thread is None or not pending.thread.is_alive())

    def complete(self) -> None:
        """Complete the unfinished point, whose files all processes have written. Every process must call this method.

        Raises:
            OutputError: the point cannot be written. All processes raise it, and the folder is gone.
        """
        pending, self._pending = self._pending, None
        assert pending is not None, "a point was begun"
        with pending.stack as stack:
            with together():
                if pending.error is not None:
                    raise pending.error
            every = gathered(pending.records)
            with together():
                if is_main():
                    records = {name: record for each in every for name, record in each.items()}
                    parts = (pending.model, pending.partial, pending.content, records, self.registry)
                    write_manifest(*parts, processes=world_size())
                stack.close()  # renames the folder
        if is_main():
            remove_resume_points(self.out, self.keep_last, self.keep_every)

    def finish(self) -> None:
        """Wait for the unfinished point, if there is one, and complete it. Every process must call this method.

        Raises:
            OutputError: as `complete`.
        """
        if self._pending is not None:
            self._pending.wait()
            self.complete()

    def note(self) -> str | None:
        """Return a line about points that held the training up, or None. Every process must call this method."""
        unfit = max(gathered(self.unfit))
        if not unfit:
            return None
        return (
            f"training waited for resume points: memory had no room for a copy of {decimal(unfit)} in a process, which "
            "is written while training goes on; raise train.save_every, or start fewer processes on a machine"
        )

    def drop(self) -> None:
        """Give the unfinished point up, if there is one, in a process that cannot meet the others."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()
            with suppress(OutputError), pending.stack:
                raise OutputError("the processes cannot meet")  # removes the folder


def _begin(partial: Path, state: RunState, model: DreamModel, content: Content) -> None:
    """Write what does not depend on the processes into the new folder of a resume point.

    Raises:
        OutputError: it cannot be written.
    """
    write_beside_tensors(model, partial, content, is_portable=world_size() == 1)
    with writing(partial / STATE):
        (partial / STATE).mkdir()
        state.write(partial / STATE)


def _own_files(model: DreamModel, content: Content, moments: Mapping[str, Tensor]) -> list[TensorFile]:
    """Return the files with tensors that this process writes; `moments` are the optimizer's state, if there is one."""
    files = [slices_of_model(content)]
    if world_size() == 1:  # its slices are whole
        files = [
            replace(file, tensors={name: local(tensor) for name, tensor in file.tensors.items()})
            for file in portable_files(model, content)
        ]
    if moments:
        files.append(slices(f"{STATE}/{optimizer_file(rank(), world_size())}", moments))
    return files
