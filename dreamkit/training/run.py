"""A training run: from recipe and data to a checkpoint, resume points and `log.jsonl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import set_seed

from dreamkit import kernels
from dreamkit.build.build import build, build_as_stored
from dreamkit.build.fit import fit
from dreamkit.build.notes import machine_notes, recipe_notes
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.cache.model_check import open_cache
from dreamkit.cache.read import Cache
from dreamkit.cache.recipe_check import cache_problems, data_notes
from dreamkit.checkpoints.inputs import open_inputs
from dreamkit.checkpoints.load import LoadReport, build_saved, copy_tensors, load_checkpoint, load_weights
from dreamkit.checkpoints.manifest import Manifest
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.dataset import Dataset
from dreamkit.data.fingerprint import read_fingerprints
from dreamkit.data.packing import attention_status
from dreamkit.data.workers import original_errors
from dreamkit.distributed import barrier, is_main, join, rank, watched, world_size
from dreamkit.errors import RecipeError, TrainingError, count
from dreamkit.interrupts import Interrupted, deferred
from dreamkit.model.model import DreamModel
from dreamkit.progress.consoles import SafeConsole
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.runs.log_entries import LogEntry, read_log
from dreamkit.runs.run_paths import CHECKPOINT, EMA_CHECKPOINT, LOG, resume_points
from dreamkit.storage.paths import output_folder
from dreamkit.storage.writing import writing
from dreamkit.training.drawings import check_drawings
from dreamkit.training.ema import averaged, has_averages
from dreamkit.training.failures import memory_remedy, with_remedies
from dreamkit.training.leaving import add_resume_point
from dreamkit.training.loop import TrainingLoop
from dreamkit.training.optimizer import require_optimizer
from dreamkit.training.reading_updates import make_updates
from dreamkit.training.resume_points import continue_hint, naming_older
from dreamkit.training.resume_state import RunState, read_state
from dreamkit.training.run_folder import exclusive_run, is_finished, require_usable
from dreamkit.training.same_processes import require_same_data, require_same_start
from dreamkit.training.same_run import (
    changed_settings,
    compare_data,
    compare_finished,
    compare_model,
    compare_run,
    global_batch,
    is_longer,
    order_note,
    steps_note,
)
from dreamkit.training.sharding import mesh_shape, shard
from dreamkit.training.step_guard import Spike
from dreamkit.training.trackers import missing_trackers


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        model: the trained model, in evaluation mode.
        checkpoint: folder of its checkpoint.
        log: entries of `log.jsonl`; empty in all processes but the main one.
        is_main: flag: this process is the one of the run that writes files.
        spikes: steps that were skipped because of a spike; none in all processes but the main one.
        was_finished: flag: the resumed run had ended before, so nothing was trained.
    """

    model: DreamModel
    checkpoint: Path
    log: Sequence[LogEntry]
    is_main: bool
    was_finished: bool = False
    spikes: Sequence[Spike] = ()


def train_recipe(
    recipe: Recipe,
    registry: Registry,
    out: Path | str,
    *,
    resume: bool = False,
    changed_data: bool = False,
    model: DreamModel | None = None,
    datasets: Sequence[Dataset] | None = None,
    held_out: Sequence[Dataset] | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
) -> TrainResult:
    """Train the model of `recipe` into the folder `out`. Processes started by `torchrun` share the work.

    So do those of a process group that the program has set up, on the current CUDA device of each; it stays.

    Args:
        recipe: the recipe, from `load_recipe`.
        registry: the components that the recipe names.
        out: a new or empty folder for the checkpoint, the resume points and `log.jsonl`.
        resume: continue the run in `out` from its last resume point; the result is that of an uninterrupted run. A run
            that has ended is loaded, or lengthened if the recipe has more steps.
        changed_data: with `resume`, accept data that changed since the resume point was written.
        model: the model to train, with the recipe's `model` section; None builds one, or with `resume` loads it.
        datasets: one data set for each section of `recipe.data`; None builds those of the recipe.
        held_out: one data set for each section of `recipe.held_out`; None builds those of the recipe.
        on_log: function to call with each entry of the log, such as `{"step": 10, "lm": 2.1, ...}`.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after the step, in the main thread and if they have no handler of
    the user. An error or interrupt during training leaves a resume point of the last finished step; a note of the
    exception names it.

    Raises:
        Interrupted: a `KeyboardInterrupt`; a signal ended the run.
        TrainingError: `out` is in use or has no resume point. The resumed run or `model` is of another recipe, or its
            data has changed. `model` is passed with `resume`. There are no trainable parts. A data set has no
            fingerprint. A loss or gradient is not finite. The processes differ in their packages, settings or data.
        CheckpointError: the resume point or `recipe.init` is damaged or does not fit.
        CacheError: `train.cache` is damaged, does not fit, or lacks an image.
        RecipeError: the parts of the recipe do not fit each other or `train.cache`. A data set, its first document or
            `recipe.init` cannot be read; this shows before any weights are read.
        DocumentError: a later document cannot be read, or a document is too long or has nothing to train on.
        OutputError: `out` cannot be written, another command is writing it, or the machines do not share it.
    """
    if resume and model is not None:
        raise TrainingError(
            "expected no model with resume, whose model is that of the resume point; pass one of them"
        )
    if changed_data and not resume:
        raise TrainingError(
            "expected changed data only in a resumed run; add --resume or leave out --changed-data"
        )
    out = output_folder(out)
    device = join()
    # Whatever fails in one process only, such as a part that its machine lacks, ends the others, too.
    with watched(lambda: continue_hint(out)), exclusive_run(out):
        require_same_start(recipe, registry, resume=resume, changed_data=changed_data)
        is_built = model is None and not resume
        fitted = fit(recipe, registry) if is_built or recipe.train.cache is not None else None
        if fitted is not None and (problems := cache_problems(fitted)):
            raise RecipeError(problems)
        if fitted is not None and is_built:
            fitted.require_valid()
        mesh_shape(recipe.train)  # raises before any weights are read
        if missing := missing_trackers(recipe):
            raise RecipeError(missing)
        require_optimizer(recipe.train)
        points = resume_points(out)
        if resume and is_finished(out) and not is_longer(out / CHECKPOINT, recipe):
            return _finished_run(out, recipe, registry, points)
        require_usable(out, points, resume)
        # Before any weights are read, which may take minutes.
        language = None if fitted is None else fitted.language_model
        inputs = open_inputs(
            recipe,
            registry,
            datasets,
            held_out,
            with_init=is_built,
            with_held_out=True,
            language=language,
        )
        datasets = inputs.require_datasets()
        fingerprints = read_fingerprints(datasets)
        held_out_sets = inputs.require_held_out()
        require_same_data({"data": fingerprints, "held_out": read_fingerprints(held_out_sets, "held_out")})
        for note in [*recipe_notes(recipe), *machine_notes(recipe)]:
            _show(note)
        documents = recipe.train.update_documents(world_size())
        state: RunState | None = None
        barrier()  # no process writes before all have checked `out`
        # Several processes read the weights that they keep, once the model is sharded.
        scratch = out.with_name(f".{out.name}.loading") if world_size() > 1 and model is None else None
        manifest: Manifest | None = None
        if resume:
            with naming_older(points[-1], points[:-1]):
                model, manifest = build_saved(points[-1], registry, scratch=scratch)
            then, state = model.recipe, read_state(points[-1])
            assert then is not None, "a loaded checkpoint has a recipe"
            compare_run(points[-1], state, then, recipe)
            documents = global_batch(state, then)
            if (order := order_note(points[-1], state)) is not None:
                _show(order)
            for change in (steps_note(state, then, recipe), changed_settings(then, recipe)):
                if change is not None:
                    _show(change)
        elif model is None:
            assert fitted is not None, "a model is built from a fitted recipe"
            model = build(fitted) if scratch is None else build_as_stored(fitted, scratch)
        else:
            compare_model(model.recipe, recipe)
        _require_documents(documents)
        _set_up(model, recipe, as_stored=scratch is not None)
        check_drawings(model, recipe)
        _show(attention_status(model.language_model.spec))
        if device.type == "cuda":
            _show(kernels.kernel_status(device))
        if recipe.train.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        is_sharded = world_size() > 1 or recipe.train.cpu_offload
        if is_sharded:
            shard(model, device, recipe.train, as_stored=scratch is not None)
        if manifest is not None:
            _show(_copy(model, points, manifest))
        elif is_built and recipe.init is not None:
            _show(load_weights(model, recipe.init))
        cache = open_cache(recipe, model, registry)
        if cache is not None:
            _show(cache)
        if state is not None and not changed_data:
            compare_data(points[-1], state, fingerprints)
        for note in inputs.notes:
            _show(note)
        if cache is not None:
            for line in data_notes(cache.folder, cache.manifest, recipe, datasets):
                _show(line)
        updates = make_updates(recipe, model, datasets, cache, documents)
        if not is_sharded:
            model.to(device)
        if is_main():
            with writing(out):
                out.mkdir(exist_ok=True)
        loop = TrainingLoop(
            model,
            recipe,
            device,
            updates,
            out,
            registry=registry,
            held_out=held_out_sets,
            data=fingerprints,
            on_log=on_log,
        )
        # The model is the same in all processes, but dropout is not; other random numbers are in the batches.
        set_seed((recipe.train.seed + rank()) % 2**32)
        _train(loop, points[-1] if resume else None, changed_data)
        for note in loop.progress.notes():
            _show(note)
        if (waited := loop.points.note()) is not None:
            _show(waited)
        if (advice := loop.reader.data_wait.advice(recipe.train.workers)) is not None:
            _show(advice)
        model.eval()
        spikes = loop.progress.guard.spikes
        return TrainResult(model, out / CHECKPOINT, loop.log.entries, is_main(), spikes=spikes)


def _require_documents(global_batch: int) -> None:
    """Check that every process has a document of each update.

    Raises:
        TrainingError: there are more processes than documents.
    """
    if world_size() > global_batch:
        raise TrainingError(
            f"expected at most {count(global_batch, 'process')}, one for each document of an update, got "
            f"{world_size()}; start fewer (torchrun --nproc-per-node) or raise train.global_batch in a new run"
        )


def _set_up(model: DreamModel, recipe: Recipe, *, as_stored: bool) -> None:
    """Give `model` the recipe, loss weights, dtype and trainable parts of this run, in place of those it came with.

    A model with weights `as_stored` keeps their types until it is sharded.

    Raises:
        TrainingError: there are no trainable parts.
        RecipeError: a group of `train.groups` matches none.
    """
    model.recipe, model.lm_weight, model.denoising_weight = recipe, recipe.loss.lm, recipe.loss.denoising
    if recipe.train.precision == "float64" and not as_stored:
        model.double()
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing to train: name parts in train.trainable or add model.adapters")
    parameter_groups(model, recipe)  # before minutes of reading


def _train(loop: TrainingLoop, point: Path | None, changed_data: bool) -> None:
    """Train from the start or from a resume point, and write the checkpoint.

    An error or interrupt has a note that names the resume point of the last finished step.
    """
    checkpoint = loop.out / CHECKPOINT

    def remedy() -> str:  # plans take time, so the last step is saved before
        return memory_remedy(loop.recipe, loop.registry, loop.device, loop.pass_shape)

    with loop.trackers, deferred("stopping after this step"):
        with loop.page.ending(lambda: loop.progress.step), with_remedies(remedy):
            try:
                with original_errors():
                    loop.train(point, changed_data=changed_data)
                with loop.saving(may_fail=False):
                    if has_averages(loop.optimizer):  # first: the checkpoint ends the run
                        with averaged(loop.model, loop.optimizer):
                            save_checkpoint(loop.model, loop.out / EMA_CHECKPOINT, registry=loop.registry)
                    save_checkpoint(loop.model, checkpoint, registry=loop.registry)
            except BaseException as error:
                loop.bar.stop()
                add_resume_point(error, loop)
                raise
            finally:
                loop.bar.stop()
        try:
            loop.agreement.call(lambda: None)  # a signal may have come in one process only
        except Interrupted as interrupt:
            interrupt.add_note(f"the run is finished: wrote {checkpoint}")
            raise


def _finished_run(out: Path, recipe: Recipe, registry: Registry, points: Sequence[Path]) -> TrainResult:
    """Load the result of the run in `out`, which has ended.

    Raises:
        TrainingError: the run has another recipe.
        CheckpointError: its checkpoint is damaged.
    """
    checkpoint = out / CHECKPOINT
    model = _load(checkpoint, registry, older=points)
    compare_finished(checkpoint, model.recipe, recipe)
    _show(f"the run in {out} is finished; nothing was trained; more train.steps would lengthen it")
    model.eval()
    return TrainResult(
        model, checkpoint, read_log(out / LOG) if is_main() else (), is_main(), was_finished=True
    )


def _show(report: LoadReport | Cache | str) -> None:
    if is_main():
        # Paths and keys are no markup.
        console = SafeConsole(stderr=True, markup=False, emoji=False)
        console.print(report, soft_wrap=not isinstance(report, LoadReport))


def _load(checkpoint: Path, registry: Registry, older: Sequence[Path]) -> DreamModel:
    """Load the model of a finished run; `older` are its resume points.

    Raises:
        CheckpointError: it is damaged; the message names the last resume point.
    """
    with naming_older(checkpoint, older):
        model, report = load_checkpoint(checkpoint, registry)
    _show(report)
    return model


def _copy(model: DreamModel, points: Sequence[Path], manifest: Manifest) -> LoadReport:
    """Copy the weights of the last resume point, which has this manifest, into its model.

    Raises:
        CheckpointError: they are damaged; the message names the resume point before it.
    """
    with naming_older(points[-1], points[:-1]):
        return copy_tensors(model, points[-1], manifest)
