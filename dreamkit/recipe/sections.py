"""Typed sections of a recipe: model, data, loss and training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

from dreamkit.earlier_names import with_earlier_fields
from dreamkit.errors import ConfigError
from dreamkit.recipe.fields import setting
from dreamkit.recipe.generation_section import MAX_TOKENS, GenerationSection
from dreamkit.recipe.places import place
from dreamkit.recipe.special_tokens import SpecialTokens
from dreamkit.recipe.written import as_written

Adaptable: TypeAlias = Literal["language_model", "vision_encoder", "image_decoder"]
PartName: TypeAlias = Literal[Adaptable, "visual_projector", "condition_projector", "pooled_projector"]
Trainable: TypeAlias = Literal[PartName, "dream_queries", "new_tokens"]
Schedule: TypeAlias = Literal["cosine", "linear", "constant", "wsd"]
OptimizerName: TypeAlias = Literal["adamw", "adafactor", "adamw8bit"]
# trackers by accelerate's names
Tracker: TypeAlias = Literal[
    "tensorboard", "wandb", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio"
]
Shuffle: TypeAlias = Literal["full", "blocks", "none"]
Quantization: TypeAlias = Literal["nf4", "int8"]
WITH_SOURCE: Final[tuple[str, ...]] = get_args(Adaptable)  # kinds that have weights to name
PARTS: Final[tuple[str, ...]] = get_args(PartName)
TRAINABLE: Final[tuple[str, ...]] = get_args(Trainable)
SHUFFLES: Final[tuple[str, ...]] = get_args(Shuffle)

# A run of this many steps, at a thousand a second, takes eleven days; a counter of steps needs no more.
MAX_STEPS: Final = 10**9
# Documents of an update: a hundred times those of the largest updates that were published.
MAX_GLOBAL_BATCH: Final = 10**7
# Rows of a forward pass, documents of a batch and batches of an update: more than the memory of a device holds.
MAX_BATCH: Final = 10**6
# Documents of a run, on a device: more than a thousand times what any published model was trained on.
MAX_DOCUMENTS: Final = 10**14
# Processes that read data for one device: more than a machine has cores.
MAX_WORKERS: Final = 1024


@dataclass(frozen=True)
class PartSection:
    """A part: the `name` of its component, whose `Config` has the section's other keys."""

    name: str
    config: Any = setting(None, inner=True)


@dataclass(frozen=True)
class SourcedSection(PartSection):
    """A part with weights of a source; `quantize` freezes those of its linear layers in 4 (nf4) or 8 bits (int8)."""

    quantize: Quantization | None = None


@dataclass(frozen=True)
class DataSection:
    """A data set; the share of its documents in training is proportional to `weight`.

    `shuffle` is their order: at random, in blocks of neighbours, or as they are stored.
    """

    name: str
    config: Any = setting(None, inner=True)
    weight: float = setting(1.0, above=0)
    shuffle: Shuffle = "full"


@dataclass(frozen=True)
class HeldOutSection:
    """A data set that training never uses, for losses on held-out documents."""

    name: str
    config: Any = setting(None, inner=True)


@dataclass(frozen=True)
class AdapterSection:
    """A LoRA adapter (arXiv 2106.09685) of the part `target`, on the layers `modules` (None: the part's default)."""

    target: Adaptable
    rank: int = setting(16, least=1, most=4096)
    alpha: float = setting(32, above=0)
    dropout: float = setting(0.0, least=0, below=1)
    modules: list[str] | None = None
    use_dora: bool = False
    use_rslora: bool = False


@dataclass(frozen=True)
class ModelSection:
    """The parts of a model. Without `pooled_projector`, a decoder with a pooled vector gets a linear one."""

    language_model: SourcedSection = setting(kind="language_model", sourced=True)
    vision_encoder: SourcedSection = setting(kind="vision_encoder", sourced=True)
    visual_projector: PartSection = setting(kind="projector")
    condition_projector: PartSection = setting(kind="projector")
    image_decoder: SourcedSection = setting(kind="image_decoder", sourced=True)
    pooled_projector: PartSection | None = setting(None, kind="projector")
    dream_queries: int = setting(64, least=1, most=MAX_TOKENS)
    special_tokens: SpecialTokens = SpecialTokens()
    adapters: tuple[AdapterSection, ...] = ()


@with_earlier_fields(vm="denoising")
@dataclass(frozen=True)
class LossSection:
    """Weights of the loss: lm * language-modelling loss + denoising * denoising loss.

    `condition_drop` is the probability of training an image unconditionally.
    """

    lm: float = setting(1.0, least=0)
    denoising: float = setting(10.0, least=0)
    condition_drop: float = setting(0.0, least=0, most=1)

    def __post_init__(self) -> None:
        if self.lm == self.denoising == 0:
            raise ValueError("expected lm or denoising above 0, got 0 for both; otherwise nothing is trained")


@dataclass(frozen=True)
class GroupSection:
    """Trained tensors with settings of their own; a setting that is None is that of `train`.

    `match` is a part, by its name in `trainable`, or a pattern of the tensors' names in the model, such as `*.lora_*`.
    A tensor belongs to the first group that matches it.
    `weight_decay` for a part excepts what has none by default: vectors and embeddings. For a pattern, `dream_queries`
    and `new_tokens`, it holds for every tensor.
    """

    match: str
    learning_rate: float | None = setting(None, above=0, most=100)
    weight_decay: float | None = setting(None, least=0)
    warmup: int | float | None = setting(None, least=0, most=MAX_STEPS)

    def __post_init__(self) -> None:
        require_durations(warmup=self.warmup)
        if self.learning_rate is self.weight_decay is self.warmup is None:
            raise ConfigError(
                {"match": "expected learning_rate, weight_decay or warmup beside match, got none"}
            )


@dataclass(frozen=True)
class TrainSection:
    """Training of `steps` updates, each of `global_batch` documents over all devices.

    A forward pass has at most `micro_batch` rows of documents (None: all rows of a device). Earlier recipes name
    `accumulation` batches of `batch_size` documents on every device instead.
    `trainable` names what is trained besides adapters. `groups` are tensors with settings of their own.
    `warmup` is in steps, or a share of them below 1; so is `decay`, the end of the schedule wsd (None: 0.2).
    `ema` is the decay of moving averages of the trained weights (None: no averages).
    `on_spike` is the action at a gradient norm above `spike_factor` times the median of the norms before (None: none).
    `max_length` is the number of tokens in a row (None: the language model's maximum).
    `packing` puts several documents into a row (None: if the language model can keep them apart).
    `precision` is that of computing, and with float64, which is meant for tests, of the weights too.
    `sharding` divides weights, gradients and the optimizer's state among the devices: of all (full), of each machine
    (hybrid), or not at all (none). Each device holds the whole frozen weights of the parts in `unsharded`.
    `cpu_offload` keeps weights, gradients and the optimizer's state in the host's memory.
    `log_every` and `save_every` are in steps; `save_every=0` saves only at the end.
    `trackers` get the lines of the log.
    `keep_last` is the number of resume points that stay (0: all), besides those after a multiple of `keep_every` steps.
    `on_save_error` is the action if a resume point cannot be written. The checkpoint at the end must be written.
    `cache` is a folder that `dreamkit cache` wrote.
    `on_error` is the action at a document that cannot be used, `too_long` at one longer than `max_length`.
    `max_skipped` is the greatest share of the documents to skip, after the first thousand.
    `draw_every` and `eval_every` are in steps; 0 is never. An image is drawn after each of the `prompts`. Losses are
    computed on at most `eval_documents` of each set in `held_out`. Both are due after the last step, too.
    `decode_margin` lets JPEG images be decoded smaller: at no less than this many times the size that the parts resize
    images to (None: in full size).
    """

    trainable: tuple[Trainable, ...]
    steps: int = setting(least=1, most=MAX_STEPS)
    global_batch: int | None = setting(None, least=1, most=MAX_GLOBAL_BATCH)
    micro_batch: int | None = setting(None, least=1, most=MAX_BATCH)
    batch_size: int | None = setting(None, least=1, most=MAX_BATCH)
    accumulation: int | None = setting(None, least=1, most=MAX_BATCH)
    learning_rate: float = setting(2e-5, above=0, most=100)
    schedule: Schedule = "cosine"
    warmup: int | float = setting(0, least=0, most=MAX_STEPS)
    decay: int | float | None = setting(None, least=0, most=MAX_STEPS)
    weight_decay: float = setting(0.0, least=0)
    optimizer: OptimizerName = "adamw"
    ema: float | None = setting(None, above=0, below=1)
    groups: tuple[GroupSection, ...] = ()
    max_grad_norm: float = setting(1.0, above=0)
    spike_factor: float | None = setting(None, above=1, most=1e6)
    on_spike: Literal["skip", "stop"] = "skip"
    max_length: int | None = setting(None, least=1, most=MAX_TOKENS)
    packing: bool | None = None
    seed: int = setting(0, least=0, most=2**32 - 1)
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "full", "hybrid"] = "full"
    unsharded: tuple[PartName, ...] = ()
    cpu_offload: bool = False
    log_every: int = setting(10, least=1, most=MAX_STEPS)
    save_every: int = setting(0, least=0, most=MAX_STEPS)
    trackers: tuple[Tracker, ...] = ()
    keep_last: int = setting(2, least=0, most=MAX_STEPS)
    keep_every: int | None = setting(None, least=1, most=MAX_STEPS)
    on_save_error: Literal["stop", "continue"] = "stop"
    workers: int = setting(0, least=0, most=MAX_WORKERS)
    cache: str | None = setting(None, path=True)
    on_error: Literal["skip", "stop"] = "skip"
    max_skipped: float = setting(0.01, least=0, most=1)
    too_long: Literal["cut", "skip", "stop"] = "cut"
    decode_margin: float | None = setting(None, least=1, most=1000)
    draw_every: int = setting(0, least=0, most=MAX_STEPS)
    prompts: tuple[str, ...] = ()
    eval_every: int = setting(0, least=0, most=MAX_STEPS)
    eval_documents: int = setting(256, least=1, most=MAX_DOCUMENTS)

    def __post_init__(self) -> None:
        new, old = (
            [name for name in names if getattr(self, name) is not None]
            for names in (("global_batch", "micro_batch"), ("batch_size", "accumulation"))
        )
        if new and old:
            raise ValueError(
                f"expected {' and '.join(new)} alone, got {' and '.join(old)}, too; remove the latter: global_batch is "
                "their product, times the number of processes"
            )
        if self.global_batch is None and self.batch_size is None:
            raise ValueError(
                "missing global_batch: name the number of documents of an update, over all devices"
            )
        if trained := [part for part in self.unsharded if part in self.trainable]:
            raise ValueError(
                f"expected frozen parts in unsharded, got {', '.join(trained)}, which trainable names too; remove "
                "one of them"
            )
        if self.batch_size is not None and self.accumulation is None:
            object.__setattr__(self, "accumulation", 1)
        require_durations(warmup=self.warmup, decay=self.decay)
        if self.decay is not None and self.schedule != "wsd":
            raise ConfigError(
                {"decay": f"expected none with the schedule {self.schedule}; remove it, or set schedule: wsd"}
            )
        if self.draw_every and not self.prompts:
            raise ConfigError(
                {"prompts": "expected texts to draw images after, got none; or set draw_every: 0"}
            )
        if self.prompts and not self.draw_every:
            raise ConfigError(
                {"draw_every": "expected the steps between drawings of prompts, got 0; or remove prompts"}
            )
        documents = self.steps * self.update_documents(processes=1)
        if documents > MAX_DOCUMENTS:
            raise ValueError(
                f"expected at most {MAX_DOCUMENTS} documents in a run, got {documents}; lower steps or "
                f"{' or '.join(new or old)}"
            )

    def update_documents(self, processes: int) -> int:
        """Return the number of documents of an update, in a run that starts with this number of processes."""
        if self.global_batch is not None:
            return self.global_batch
        assert self.batch_size is not None and self.accumulation is not None, "see __post_init__"
        return self.batch_size * self.accumulation * processes

    def in_steps(self, duration: float) -> int:
        """Return a duration, in steps or as a share of them, in steps; a share is rounded up, as transformers does."""
        # exact in decimals: 0.07 of 100 steps are 7, though 0.07 * 100 > 7 in floating point
        share = isinstance(duration, float)
        return math.ceil(Decimal(str(duration)) * self.steps) if share else int(duration)

    def passes(self, rows: int) -> int:
        """Return the number of forward passes for the rows of an update on one device."""
        if self.accumulation is not None:
            return min(self.accumulation, rows)
        return 1 if self.micro_batch is None else -(-rows // self.micro_batch)


def require_durations(**durations: float | None) -> None:
    """Check that each duration is an integer, in steps, or a share between 0 and 1.

    Raises:
        ConfigError: one is another number.
    """
    problems = {
        name: f"expected steps as an integer, or a share of them between 0 and 1, got {duration}"
        for name, duration in durations.items()
        if isinstance(duration, float) and not 0 < duration < 1
    }
    if problems:
        raise ConfigError(problems)


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its training. `init` is a checkpoint to start from.

    `held_out` are data sets for losses after every `train.eval_every` steps.
    `places` maps keys to their `file:line`. A recipe without `train` and `data` only describes a model.
    """

    model: ModelSection = setting(draft=True)
    train: TrainSection = setting(TrainSection(trainable=(), steps=1, global_batch=1), draft=True)
    init: str | None = setting(None, path=True)
    data: tuple[DataSection, ...] = setting((), kind="dataset")
    held_out: tuple[HeldOutSection, ...] = setting((), kind="dataset")
    loss: LossSection = setting(LossSection(), draft=True)
    generation: GenerationSection = setting(GenerationSection(), draft=True)
    places: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.train.eval_every and not self.held_out:
            raise ConfigError(
                {"held_out": "expected data sets to evaluate on, got none; or set train.eval_every: 0"}
            )
        if self.held_out and not self.train.eval_every:
            raise ConfigError(
                {"train.eval_every": "expected the steps between evaluations, got 0; or remove held_out"}
            )

    def place(self, key: str) -> str:
        """Return the `file:line` of `key`, or of the section around it if `key` is not written."""
        return place(self.places, key)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with absolute paths and every default; `recipe_from_dict` returns an equal recipe.

        Paths with environment variables are as written, so that a checkpoint holds none of their values.
        """
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.init}


def plain(value: Any) -> Any:
    """Return a section or another value as dicts, lists and scalars; paths as strings, as they are written."""
    if isinstance(value, PartSection | DataSection | HeldOutSection):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "config"}
        return {**own, **plain(value.config)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return as_written(value) if isinstance(value, str | Path) else value
