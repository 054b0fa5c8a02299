"""Settings of a recipe with which a training fits into the memory of its devices, found by plans of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, product
from math import isqrt
from typing import Any, Final

from dreamkit.errors import DreamkitError, count
from dreamkit.plan.advice import memory_advice
from dreamkit.plan.memory import Device
from dreamkit.plan.plan import Plan
from dreamkit.plan.sizes import format_bytes
from dreamkit.plan.trials import USABLE, Settings, Trials, changed, largest
from dreamkit.recipe.files import COMMAND_LINE
from dreamkit.recipe.sections import MAX_BATCH, Recipe
from dreamkit.registry.registry import Registry

ROWS: Final = "train.micro_batch"
EARLIER: Final = ("train.batch_size", "train.accumulation")
QUANTIZE: Final = "model.language_model.quantize"
# Bytes of a packed weight. Devices hold them whole, and other weights divided.
PACKED: Final = {"int8": 1.0, "nf4": 0.5625}


@dataclass(frozen=True)
class Trial:
    """A plan of the search, with `settings` of the recipe.

    `peak` is that of a step, or if weights and states alone do not fit, their bytes (`is_step` is false).
    """

    settings: Settings
    peak: int
    is_step: bool
    fits: bool


@dataclass(frozen=True)
class Proposal:
    """Settings with which a training fits into `memory` bytes on each of `devices`, on as many `machines`.

    `changes` are the settings that differ from the recipe's, and `train.micro_batch`; `recipe` has them.
    """

    recipe: Recipe
    changes: Settings
    plan: Plan
    trials: tuple[Trial, ...]
    memory: int
    devices: int
    machines: int

    @property
    def usable(self) -> int:
        """The bytes of a device that a plan may take."""
        return usable(self.memory)

    @property
    def where(self) -> str:
        """The devices, in words."""
        return devices_in_words(self.memory, self.devices, self.machines)


def devices_in_words(memory: int, devices: int, machines: int) -> str:
    machines_in_words = f" on {count(machines, 'machine')}" if machines > 1 else ""
    return f"{count(devices, 'device')} of {format_bytes(memory)}{machines_in_words}"


def usable(memory: int) -> int:
    """Return the bytes that a plan may take of a device's memory."""
    return int(USABLE * memory)


def propose(
    recipe: Recipe,
    registry: Registry,
    memory: int,
    *,
    devices: int,
    machines: int = 1,
    images: int = 1,
    device: Device = "cuda",
    on_plan: Callable[[Settings], None] = lambda settings: None,
) -> Proposal:
    """Return the fastest settings, by the order of `_choices`, with which a step of `recipe` fits by its plan.

    The documents of an update, the length of rows and what is trained stay, and so do settings of the command line.
    `on_plan` is called with the settings before each plan.

    Raises:
        DreamkitError: nothing fits, the recipe cannot be planned, there are more devices than documents of an update,
            or the command line sets `train.batch_size` or `accumulation`.
    """
    return _Search(recipe, registry, memory, devices, machines, images, device, on_plan).proposal()


class _Search:
    """A search for settings that fit; see `propose`."""

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        memory: int,
        devices: int,
        machines: int,
        images: int,
        device: Device,
        on_plan: Callable[[Settings], None],
    ) -> None:
        _require_searchable(recipe, devices)
        self.memory, self.devices, self.machines = memory, devices, machines
        train = recipe.train
        global_batch = train.update_documents(devices)
        # a recipe of an earlier form has a number of documents for each device
        earlier = {"train.global_batch": global_batch, **dict.fromkeys(EARLIER)}
        self.base: dict[str, Any] = {} if train.global_batch else earlier
        self.recipe = changed(recipe, self.base)
        documents = -(-global_batch // devices)
        held = train.micro_batch if _is_held(recipe, ROWS) else None
        self.rows = [held] if held else row_numbers(documents)
        self.trials = Trials(
            self.recipe,
            registry,
            processes=devices,
            machines=machines,
            images=images,
            device=device,
            on_plan=on_plan,
        )
        self.tried: dict[tuple[tuple[str, Any], ...], Trial] = {}

    def proposal(self) -> Proposal:
        """Return the proposal, or raise an error if nothing fits."""
        combinations = map(merged, product(*_choices(self.recipe, self.devices, self.machines)))
        chosen = next((each for each in combinations if self._fits(each)), None)
        if chosen is None:
            raise DreamkitError(self._failure())
        rows = self._most_rows(chosen)
        settings = {**chosen, ROWS: rows}
        changes = {key: value for key, value in settings.items() if value != _value(self.recipe, key)}
        return Proposal(
            recipe=changed(self.recipe, settings),
            changes={**self.base, ROWS: rows, **changes},
            plan=self.trials.plan(settings),
            trials=tuple(self.tried.values()),
            memory=self.memory,
            devices=self.devices,
            machines=self.machines,
        )

    def _trial(self, settings: Settings, rows: int) -> Trial:
        settings = {**settings, ROWS: rows}
        key = tuple(sorted(settings.items()))
        if key not in self.tried:
            least = self.trials.least(settings)
            is_step = least <= usable(self.memory)
            peak = self.trials.plan(settings).memory.peak if is_step else least
            self.tried[key] = Trial(settings, peak, is_step, peak <= usable(self.memory))
        return self.tried[key]

    def _fits(self, settings: Settings) -> bool:
        # a single pass keeps no gradients of passes before it, so it may take less than several of fewer rows
        ends = dict.fromkeys((self.rows[0], self.rows[-1]))
        return any(self._trial(settings, rows).fits for rows in ends)

    def _most_rows(self, settings: Settings) -> int:
        most = self.rows[-1]
        if self._trial(settings, most).fits:
            return most
        return largest(self.rows, lambda rows: self._trial(settings, rows).peak, usable(self.memory))

    def _failure(self) -> str:
        """Return the message about the settings that need least."""
        least = min(self.tried.values(), key=lambda trial: trial.peak)
        plan, recipe = self.trials.plan(least.settings), changed(self.recipe, least.settings)
        settings = " ".join(
            f"{key}={yaml_value(value)}" for key, value in least.settings.items() if value is not None
        )
        why, *advice = memory_advice(plan, recipe, usable(self.memory), processes="--devices")
        return "\n".join(
            [
                f"no settings fit into {devices_in_words(self.memory, self.devices, self.machines)}, of which a plan "
                f"may take {USABLE:.0%}; those with the smallest peak are {settings}",
                why,
                *advice,
            ]
        )


def row_numbers(documents: int) -> list[int]:
    """Return the numbers of rows of a forward pass, ascending, that divide `documents` evenly among some passes.

    Of numbers that need equally many passes, only the smallest is among them.
    """
    few = range(1, isqrt(documents) + 2)
    passes = chain(few, (-(-documents // rows) for rows in few))
    return sorted({rows for number in passes if (rows := -(-documents // number)) <= MAX_BATCH})


def yaml_value(value: object) -> str:
    """Return a scalar as a recipe writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _choices(recipe: Recipe, devices: int, machines: int) -> Iterator[Sequence[Settings]]:
    """Yield the options of each setting from the fastest to the slowest; the dearest setting comes first.

    What the recipe sets for the sake of memory stays set. Only `train.sharding` is chosen anew.
    """
    train = recipe.train
    precisions = ["float32", "bfloat16"] if train.precision == "float32" else [train.precision]
    shardings = ["none", *(["hybrid"] if 1 < machines < devices else []), "full"]
    section = recipe.model.language_model
    kinds: list[str | None] = [section.quantize]
    if "language_model" not in train.trainable and section.quantize is None:
        kinds += [kind for kind, size in PACKED.items() if size * devices < 4 and _is_installed(kind)]
    options: dict[str, list[Any]] = {
        "train.cpu_offload": [True] if train.cpu_offload else [False, True],
        QUANTIZE: kinds,
        "train.precision": precisions,
        "train.gradient_checkpointing": [True] if train.gradient_checkpointing else [False, True],
        "train.sharding": shardings if devices > 1 else [train.sharding],
    }
    for key, values in options.items():
        yield [{key: value} for value in ([_value(recipe, key)] if _is_held(recipe, key) else values)]


def merged(settings: Iterable[Settings]) -> Settings:
    """Return all settings as one mapping."""
    return {key: value for each in settings for key, value in each.items()}


def _is_installed(kind: str) -> bool:
    return kind != "nf4" or find_spec("bitsandbytes") is not None


def _value(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _is_held(recipe: Recipe, key: str) -> bool:
    """Return True if the command line sets this key: a setting there wins over a recipe merged on top."""
    return recipe.places.get(key) == COMMAND_LINE


def _require_searchable(recipe: Recipe, devices: int) -> None:
    for key in EARLIER:
        if _is_held(recipe, key):
            raise DreamkitError(
                f"expected train.global_batch with --devices, got {key} on the command line; it would replace the "
                "proposal's train.micro_batch"
            )
    documents = recipe.train.update_documents(devices)
    if devices > documents:
        raise DreamkitError(
            f"expected at most {count(documents, 'device')}, one for each document of an update, got {devices}; lower "
            "--devices or raise train.global_batch"
        )
