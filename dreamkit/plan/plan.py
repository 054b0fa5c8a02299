"""What a recipe will take, told on the meta device without weights: sizes, memory, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.build.fit_record import part_section
from dreamkit.cache.recipe_check import cache_problems
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.model.model import DreamModel
from dreamkit.parts.part import Part
from dreamkit.plan.chain import Step, chain
from dreamkit.plan.memory import Device, Memory, shares, total_bytes
from dreamkit.plan.rows import full_batch, most_images
from dreamkit.plan.step import measure
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


@dataclass(frozen=True)
class PartSize:
    """Parameters of a part, how many of them are trained, and bytes of its parameters and buffers."""

    part: str
    component: str
    parameters: int
    trainable: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a step of a recipe takes, on each of `processes` devices.

    `images` of each document are drawn and read; a row has room for `most_images`. `rows` counts what a batch is
    completed by too. `unchecked` are parts with a source that a gradient passes through, and that cannot recompute
    their activations. `flops` are those of one device.
    """

    chain: tuple[tuple[Step, ...], ...]
    parts: tuple[PartSize, ...]
    memory: Memory
    flops: int
    processes: int
    rows: int
    length: int
    images: int
    most_images: int
    unchecked: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts)


def plan(
    recipe: Recipe, registry: Registry, *, processes: int = 1, images: int = 1, device: Device = "cuda"
) -> Plan:
    """The plan of a training step of `recipe`. `device` says whose optimizer runs.

    Raises:
        RecipeError: parts that do not fit, or cannot tell their size, or a `train.cache` that does not fit.
        DreamkitError: nothing is trained, or no row holds so many images.
    """
    found = fit(recipe, registry)
    if problems := cache_problems(found):
        raise RecipeError(problems)
    model = build_on_meta(found)
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DreamkitError(
            "nothing is to be trained, so there is no step to plan; name parts in train.trainable, or add "
            "model.adapters"
        )
    model.train()
    unchecked: tuple[str, ...] = ()
    if recipe.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
        unchecked = _unchecked(model)
    batch = full_batch(model, recipe, images)
    rows, length = batch.input_ids_BT.shape
    sequencer = model.sequencer(recipe.train.max_length)
    parts, steps = _sizes(model, recipe), chain(model, recipe)
    kept = shares(model, processes, device)
    measured = measure(model, batch, recipe, kept.gradient_bytes)
    return Plan(
        chain=steps,
        parts=parts,
        memory=kept.memory(measured.computing),
        flops=measured.flops,
        processes=processes,
        rows=rows,
        length=length,
        images=images,
        most_images=most_images(sequencer),
        unchecked=unchecked,
    )


def _unchecked(model: DreamModel) -> tuple[str, ...]:
    """The parts with a source that a gradient passes through, and that know of no checkpointing."""
    reached, none = model.reached_parts(), Part.enable_gradient_checkpointing
    return tuple(
        name
        for name in WITH_SOURCE
        if name in reached and type(reached[name]).enable_gradient_checkpointing is none
    )


def _sizes(model: DreamModel, recipe: Recipe) -> tuple[PartSize, ...]:
    """Rows of added tokens are told apart from the rest of the language model."""
    tokens = {id(rows): rows for rows in model.language_model.added_token_parameters()}
    groups = {
        name: [parameter for parameter in part.parameters() if id(parameter) not in tokens]
        for name, part in model.parts().items()
    }
    sections = {name: part_section(recipe.model, name) for name in groups}
    groups |= {"new_tokens": [*tokens.values()], "dream_queries": [model.dream_queries]}
    buffers = {name: total_bytes(part.buffers()) for name, part in model.parts().items()}
    return tuple(
        PartSize(
            part=name,
            component=section.name if (section := sections.get(name)) else "",
            parameters=sum(parameter.numel() for parameter in parameters),
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            bytes=total_bytes(parameters) + buffers.get(name, 0),
        )
        for name, parameters in groups.items()
        if parameters or name in buffers
    )
