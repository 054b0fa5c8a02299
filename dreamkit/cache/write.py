"""Writing of a cache by one process or several: a folder that appears only when it is complete.

All processes list the images of the data, then compute the rows of the distinct ones. Both stages work in blocks, which
depend on the data alone. So the bytes of a cache do not depend on the number of processes, or on interruptions.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dreamkit.cache.cached_parts import prepare_parts
from dreamkit.cache.caching import CacheReport, Caching, CachingProgress, Estimate
from dreamkit.cache.manifest import TABLES, CacheManifest
from dreamkit.cache.unfinished import Unfinished
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.data.dataset import Dataset
from dreamkit.data.skipped import SkippedSummary
from dreamkit.data.workers import original_errors
from dreamkit.distributed import is_main, join, together, watched
from dreamkit.errors import CacheError, did_you_mean
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage import folders
from dreamkit.storage.locks import exclusive
from dreamkit.storage.paths import output_folder

SHARD_BYTES = 512 * 2**20
FINISHED: Final = (
    "the cache was finished without this table; to add it, write the cache again with --overwrite"
)


def make_cache(
    recipe: Recipe,
    registry: Registry,
    out: Path | str,
    *,
    only: Collection[str] = TABLES,
    overwrite: bool = False,
    resume: bool = False,
    model: DreamModel | None = None,
    datasets: Sequence[Dataset] | None = None,
    shard_bytes: int = SHARD_BYTES,
    block_documents: int | None = None,
    on_start: Callable[[Estimate], None] = lambda estimate: None,
    on_progress: Callable[[CachingProgress], None] = lambda progress: None,
) -> CacheReport:
    """Write the outputs of the frozen parts of `recipe` for the images of its data to the folder `out`.

    Processes started by `torchrun` share the work. The folder appears only when it is complete. It has the tables of
    `only` that can be cached and that the data has images for.

    Args:
        recipe: the recipe, from `load_recipe`.
        registry: the components that the recipe names.
        out: the folder.
        only: tables to write.
        overwrite: replace a cache in `out`; without `resume`, also throw away unfinished work on one.
        resume: continue the unfinished work on this cache; the result is that of an uninterrupted command.
        model: the model, instead of that of the recipe, as in `dreamkit.training.run.train_recipe`.
        datasets: one data set for each section of `recipe.data`, instead of those of the recipe.
        shard_bytes: greatest size of the rows in a file.
        block_documents: documents that a process lists at a time; the default depends on their number.
        on_start: function to call in the main process before the work begins.
        on_progress: function to call in the main process with the progress of all processes.

    Raises:
        Interrupted: a `KeyboardInterrupt`; a signal ended the command.
        CacheError: no table can be cached, `out` is in use, there is unfinished work or none to continue, it is of
            another recipe, other data or other weights, or too many documents cannot be used.
        OutputError: `out` cannot be written, or another command is writing it.
        DocumentError: a document cannot be used, and the recipe's policy is to stop.
        RecipeError: the parts do not fit each other. A data set, its first document or `recipe.init` cannot be read;
            this shows before any weights are read.
    """
    out = output_folder(out)
    for table in only:
        if table not in TABLES:
            raise CacheError(f"unknown table '{table}'; {did_you_mean(table, TABLES)}")
    work = Unfinished(out)
    device = join()
    with watched(work.hint), _locked(work, resume=resume, overwrite=overwrite):
        may_replace = folders.in_use_reason(out) is not None
        datasets = open_inputs(recipe, registry, datasets, with_init=model is None).require_datasets()
        scratch = out.with_name(f".{out.name}.loading")
        tables = [table for table in TABLES if table in only]
        parts = prepare_parts(recipe, registry, model, tables, device, scratch)
        caching = Caching(recipe, registry, work, parts, datasets, shard_bytes, block_documents, on_progress)
        if (finished := caching.open(resume)) is not None:
            missing = {table: FINISHED for table in parts.builders if table not in finished.tables}
            return CacheReport(finished, parts.left_out | missing, False, SkippedSummary(), was_finished=True)
        with _kept(work), original_errors():
            if is_main():
                free = shutil.disk_usage(work.folder).free
                on_start(Estimate(parts.row_bytes, len(caching.reader), free))
            return caching.run(may_replace)


@contextmanager
def _locked(work: Unfinished, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Lock the folder of a cache for all processes of this command, after a look at what is there.

    Raises:
        CacheError: it is in use, there is unfinished work that the user has not decided on, or none to continue.
        OutputError: another command is writing it, or it cannot be written.
    """
    out = work.out
    with ExitStack() as stack:
        with together():
            if is_main():
                folders.refuse_mount_point(out)
                stack.enter_context(exclusive(out))
                folders.clean(out)
                work.require_allowed(resume=resume, overwrite=overwrite)
                if not resume or work.has_blocks():
                    _refuse_to_replace(out, overwrite)
        yield


@contextmanager
def _kept(work: Unfinished) -> Iterator[None]:
    """Name the unfinished work in an error of the block; remove its folder if there is nothing to continue from."""
    try:
        yield
    except BaseException as error:
        if work.has_blocks():
            error.add_note(work.hint())
        elif is_main():
            work.remove()
        raise


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """Raise if writing to `folder` would lose something that `overwrite` does not allow to lose.

    Raises:
        CacheError: `folder` is a file, holds something else than a cache, or holds a cache that is not to be replaced.
    """
    CacheManifest.refuse_to_replace(folder, instead="pass another folder with --out")
    if not overwrite and (reason := folders.in_use_reason(folder)):
        raise CacheError(
            f"{folder} {reason}; pass a new folder with --out, or replace the cache with --overwrite"
        )
