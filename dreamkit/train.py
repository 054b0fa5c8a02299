"""A training run: recipe and data in, a checkpoint, resume points and `log.jsonl` out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console

from dreamkit.batch import Collator
from dreamkit.build import build
from dreamkit.checkpoint import LoadReport, load_checkpoint, load_weights, save_checkpoint
from dreamkit.data.mixture import Mixture
from dreamkit.distributed import barrier, is_main, shard, world_size
from dreamkit.errors import TrainingError
from dreamkit.interfaces import Dataset
from dreamkit.model import DreamModel
from dreamkit.plugins import Registry
from dreamkit.progress import LogEntry, ProgressBar, RunLog
from dreamkit.recipe import Recipe
from dreamkit.trainer import RESUME_POINTS, STATE, DreamTrainer, resume_points, training_arguments

CHECKPOINT = "checkpoint"  # folder of the trained model
LOG = "log.jsonl"
# settings that a resumed run may have otherwise than the run before it: none of them changes what is learned
MAY_CHANGE = ("train.log_every", "train.save_every", "train.workers")


@dataclass(frozen=True)
class TrainResult:
    """The trained model, the folder of its checkpoint, and what was logged; of several processes one `is_main`."""

    model: DreamModel
    checkpoint: Path
    log: Sequence[LogEntry]
    is_main: bool


def train(
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
        TrainingError: `out` is in use or has nothing to resume, nothing is to be trained, no data, or a loss that is
            not finite.
        CheckpointError: the resume point or `recipe.init` is damaged or does not fit.
    """
    out = Path(out).absolute()
    point = _resume_point(out) if resume else None
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(
            f"{out} is not empty; go on with the run in it by --resume, or name a new folder by --out"
        )
    arguments = training_arguments(recipe, out)
    barrier()  # every process has looked before the first one writes
    if point is not None:
        model, report = load_checkpoint(point, registry)
        _show(report)
        _compare(point, model.recipe, recipe)
        model.recipe = recipe
    elif model is None:
        model = build(recipe, registry)
        if recipe.init is not None:
            _show(load_weights(model, recipe.init))
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing is to be trained; name parts in train.trainable, or add model.adapters")
    if recipe.train.gradient_checkpointing:
        for part in model.parts().values():
            part.enable_gradient_checkpointing()
    if datasets is None:
        datasets = [registry.get("dataset", section.name)(section.config) for section in recipe.data]
    weights = [section.weight for section in recipe.data]
    documents = recipe.train.steps * recipe.train.accumulation * recipe.train.batch_size * world_size()
    mixture = Mixture(datasets, weights, documents, recipe.train.seed)
    collator = Collator(
        model.sequencer(recipe.train.max_length),
        model.vision_encoder.preprocess,
        model.image_decoder.preprocess,
        packing=recipe.train.packing,
        condition_drop=recipe.loss.condition_drop,
    )
    if world_size() > 1:
        shard(model.to(arguments.device), arguments.device)
    log, bar = RunLog(out / LOG, on_log), ProgressBar()
    callbacks = [log, bar] if is_main() else []
    trainer = DreamTrainer(model, recipe, arguments, mixture, collator, callbacks)
    # The same model everywhere, but other noise in each process.
    set_seed(recipe.train.seed, device_specific=True)
    try:
        trainer.train(resume_from_checkpoint=None if point is None else str(point / STATE))
    finally:
        bar.stop()
    trainer.meter.check()
    save_checkpoint(model, out / CHECKPOINT, registry=registry)
    model.eval()
    return TrainResult(model, out / CHECKPOINT, log.entries, is_main())


def _show(report: LoadReport) -> None:
    if is_main():
        Console(stderr=True).print(report)


def _resume_point(out: Path) -> Path:
    points = resume_points(out)
    if not points:
        raise TrainingError(
            f"{out} has nothing to resume: no folder {RESUME_POINTS}/step-N; train without --resume into a new folder "
            "(train.save_every says how often a resume point is written)"
        )
    return points[-1]


def _compare(point: Path, then: Recipe | None, now: Recipe) -> None:
    """A resumed run must be the same run."""
    assert then is not None, "a loaded checkpoint has its recipe"
    before, after = dict(_flat(then.to_dict())), dict(_flat(now.to_dict()))
    differing = [
        f"{key}: {before.get(key)!r} there, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in (*MAY_CHANGE, "model.language_model.tokenizer")
    ]
    if differing:
        listed = "\n".join(f"  {difference}" for difference in differing)
        raise TrainingError(
            f"{point} was written by another recipe; resume with the same one, or start a new run from it with "
            f"init={point}:\n{listed}"
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values of a nested recipe."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{key}[{number}]")
    else:
        yield key, value
