"""A training run: recipe and data in, a checkpoint, resume points and `log.jsonl` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import set_seed
from rich.console import Console

from dreamkit import kernels
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.cache.model_check import open_cache
from dreamkit.cache.read import Cache
from dreamkit.cache.recipe_check import cache_problems, data_notes
from dreamkit.checkpoints.load import LoadReport, load_checkpoint, load_weights
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.batch import Collator
from dreamkit.data.dataset import Dataset
from dreamkit.data.mixture import Mixture
from dreamkit.distributed import barrier, is_main, shard, world_size
from dreamkit.errors import CheckpointError, RecipeError, TrainingError
from dreamkit.model.model import DreamModel
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry
from dreamkit.storage.folders import in_use_reason
from dreamkit.training.run_bar import RunBar
from dreamkit.training.run_log import LogEntry, RunLog
from dreamkit.training.same_run import compare_model, compare_run
from dreamkit.training.trainer import (
    RESUME_POINTS,
    STATE,
    DreamTrainer,
    resume_points,
    training_arguments,
)

CHECKPOINT = "checkpoint"  # folder of the trained model
LOG = "log.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """The trained model, the folder of its checkpoint, and what was logged; of several processes one `is_main`."""

    model: DreamModel
    checkpoint: Path
    log: Sequence[LogEntry]
    is_main: bool


def train_recipe(
    recipe: Recipe,
    registry: Registry,
    out: Path | str,
    *,
    resume: bool = False,
    model: DreamModel | None = None,
    datasets: Sequence[Dataset] | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
) -> TrainResult:
    """Trains the model of `recipe` into the folder `out`; several processes started by `torchrun` share the work.

    `model` is trained instead of a newly built one, and `datasets`, one for each section of `recipe.data`, are read
    instead of those it names. With `resume` the run goes on from its last resume point as if never interrupted.

    Raises:
        TrainingError: `out` is in use or has nothing to resume, it would not be the same run, `model` is of another
            recipe, nothing is to be trained, no data, or a loss or gradient that is not finite.
        CheckpointError: the resume point or `recipe.init` is damaged or does not fit.
        RecipeError, CacheError: so is `train.cache`, or it lacks a picture.
    """
    is_built = model is None and not resume
    found = fit(recipe, registry) if is_built or recipe.train.cache is not None else None
    if found is not None and (problems := cache_problems(found)):
        raise RecipeError(problems)
    out = Path(out).absolute()
    points = _resume_points(out) if resume else []
    if not resume and (what := in_use_reason(out)):
        go_on = "go on with the run in it by --resume, or " if out.is_dir() else ""
        raise TrainingError(f"{out} {what}; {go_on}name a new folder by --out")
    arguments = training_arguments(recipe, out)
    barrier()  # every process has looked before the first one writes
    if points:
        model = _load(points, registry)
        compare_run(points[-1], model.recipe, recipe)
    elif model is None:
        assert found is not None, "a recipe whose model is built was fitted"
        model = build(found)
        if recipe.init is not None:
            _show(load_weights(model, recipe.init))
    else:
        compare_model(model.recipe, recipe)
    # What this run is, also in the checkpoint, whatever the model came from.
    model.recipe, model.lm_weight, model.denoising_weight = recipe, recipe.loss.lm, recipe.loss.denoising
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing is to be trained; name parts in train.trainable, or add model.adapters")
    if arguments.device.type == "cuda":
        _show(kernels.kernel_status(arguments.device))
    cache = open_cache(recipe, model, registry)
    if cache is not None:
        _show(cache)
    if recipe.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if datasets is None:
        datasets = [registry.get("dataset", section.name)(section.config) for section in recipe.data]
    if cache is not None:
        for line in data_notes(cache.folder, cache.manifest, recipe, datasets):
            _show(line)
    weights = [section.weight for section in recipe.data]
    documents = recipe.train.steps * recipe.train.accumulation * recipe.train.batch_size * world_size()
    mixture = Mixture(datasets, weights, documents, recipe.train.seed)
    collator = Collator(
        model.sequencer(recipe.train.max_length),
        model.vision_encoder.preprocess,
        model.image_decoder.preprocess,
        packing=recipe.train.packing,
        condition_drop=recipe.loss.condition_drop,
        computed=cache,
    )
    if world_size() > 1:
        shard(model.to(arguments.device), arguments.device)
    log, bar = RunLog(out / LOG, on_log), RunBar()
    callbacks = [log, bar] if is_main() else []
    trainer = DreamTrainer(model, recipe, arguments, mixture, collator, callbacks, registry)
    # The same model everywhere, but other noise in each process.
    set_seed(recipe.train.seed, device_specific=True)
    try:
        trainer.train(resume_from_checkpoint=str(points[-1] / STATE) if points else None)
    finally:
        bar.stop()
    trainer.check()
    save_checkpoint(model, out / CHECKPOINT, registry=registry)
    model.eval()
    return TrainResult(model, out / CHECKPOINT, log.entries, is_main())


def _show(report: LoadReport | Cache | str) -> None:
    if is_main():
        Console(stderr=True).print(report, soft_wrap=not isinstance(report, LoadReport))


def _resume_points(out: Path) -> list[Path]:
    points = resume_points(out)
    if not points:
        raise TrainingError(
            f"{out} has nothing to resume: no folder {RESUME_POINTS}/step-N; train without --resume into a new folder "
            "(train.save_every says how often a resume point is written)"
        )
    return points


def _load(points: Sequence[Path], registry: Registry) -> DreamModel:
    """The model of the last resume point."""
    *older, point = points
    try:
        model, report = load_checkpoint(point, registry)
    except CheckpointError as error:
        if not older:
            raise
        raise CheckpointError(
            f"{error}\nIf {point} cannot be mended, remove it; then --resume goes on from {older[-1]}"
        ) from error
    _show(report)
    return model
