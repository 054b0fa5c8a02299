"""The plan of a training step, computed on the meta device: sizes, memory, floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from dreamkit.build.build import build_on_meta
from dreamkit.build.fit import fit
from dreamkit.build.fit_record import part_section
from dreamkit.build.parameter_groups import parameter_groups
from dreamkit.cache.recipe_check import cache_problems
from dreamkit.data.batch import Batch, Collator
from dreamkit.data.dataset import Dataset
from dreamkit.data.samples import run_samples
from dreamkit.data.updates import Updates
from dreamkit.errors import DreamkitError, RecipeError
from dreamkit.model.model import DreamModel
from dreamkit.parts.part import Part, PretrainedPart
from dreamkit.plan.chain import Step, chain
from dreamkit.plan.memory import (
    Device,
    Memory,
    gather_in_half,
    gradient_bytes,
    layout_of,
    memory_of,
    total_bytes,
)
from dreamkit.plan.rows import batch_shapes, collator, most_images
from dreamkit.plan.step import measure_step
from dreamkit.recipe.sections import WITH_SOURCE, Recipe
from dreamkit.registry.registry import Registry


@dataclass(frozen=True)
class PartSize:
    """The size of a part: parameters, trainable ones among them, and bytes of parameters and buffers."""

    part: str
    component: str
    parameters: int
    trainable: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Shapes, sizes, memory and operations of a training step on each of `processes` devices.

    `passes` are the forward passes of an update, and `documents` those of one pass. `rows` are those of its batch,
    padding rows included; `length` is their number of tokens.
    `tokens` are those that are not padding. `images` in each document are drawn and read; None for real documents.
    A row has room for `most_images`.
    `unchecked` are parts with a source that a gradient passes through but that cannot recompute their activations.
    `in_turns` are parts that one process of a machine loads at a time, whole.
    `flops` are those of one device.
    """

    chain: tuple[tuple[Step, ...], ...]
    parts: tuple[PartSize, ...]
    memory: Memory
    flops: int
    processes: int
    passes: int
    documents: int
    rows: int
    length: int
    tokens: int
    images: int | None
    most_images: int
    unchecked: tuple[str, ...]
    in_turns: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts)


def plan(
    recipe: Recipe,
    registry: Registry,
    *,
    processes: int = 1,
    machines: int = 1,
    images: int = 1,
    device: Device = "cuda",
    make_batch: Callable[[Collator], Batch] | None = None,
    passes: int = 1,
) -> Plan:
    """Plan a training step of `recipe` on this kind of `device`.

    `make_batch` returns the batch of a forward pass, from the collator of the training; an update has this number of
    `passes`. Without it, the documents of an update have `train.max_length` tokens with `images` each, and the passes
    are those of the training.

    Raises:
        RecipeError: parts do not fit, a part has no `meta_modules`, or `train.cache` or `train.groups` do not fit.
        DreamkitError: nothing is trained, or a row has no room for this number of images.
        DocumentError: `make_batch` raised it.
    """
    layout = layout_of(recipe.train, processes, machines)
    result = fit(recipe, registry)
    if problems := cache_problems(result):
        raise RecipeError(problems)
    model = build_on_meta(result)
    model.set_trainable(recipe.train.trainable)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise DreamkitError(
            "no step to plan, since nothing is trained; name parts in train.trainable or add model.adapters"
        )
    parameter_groups(model, recipe)  # its errors
    model.train()
    if recipe.train.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if make_batch is None:
        documents = -(-recipe.train.update_documents(processes) // processes)
        passes = recipe.train.passes(documents)
        documents = -(-documents // passes)
        batch = batch_shapes(model, recipe, images, documents)
    else:
        batch = make_batch(collator(model, recipe))
        documents = len(batch.places)
    rows, length = batch.input_ids_BT.shape
    # everything about the model is read before the step, which uses its tensors up
    parts, steps, memory = _sizes(model, recipe), chain(model, recipe), memory_of(model, recipe.train, layout)
    unchecked = _unchecked(model) if recipe.train.gradient_checkpointing else ()
    tokens = sum(end - start for row in batch.spans for start, end in row)
    most = most_images(model.sequencer(recipe.train.max_length))
    in_turns = _in_turns(model, recipe) if processes > 1 else ()
    gradients = gradient_bytes(model, layout)
    gather_in_half(model, layout)
    computing, flops = measure_step(model, batch, recipe, gradients, passes, device)
    return Plan(
        chain=steps,
        parts=parts,
        memory=replace(memory, computing=computing),
        flops=flops,
        processes=processes,
        passes=passes,
        documents=documents,
        rows=rows,
        length=length,
        tokens=tokens,
        images=images if make_batch is None else None,
        most_images=most,
        unchecked=unchecked,
        in_turns=in_turns,
    )


def plan_data(
    recipe: Recipe,
    registry: Registry,
    datasets: Sequence[Dataset],
    batches: int,
    *,
    processes: int = 1,
    machines: int = 1,
    device: Device = "cuda",
) -> Plan:
    """Plan each of the first `batches` of a training on `datasets`; return the plan with the highest peak.

    A batch is that of a forward pass, in the order of updates and processes. Bad and long documents are skipped and cut
    as in the training.

    Raises:
        DreamkitError: as `plan` does.
        TrainingError: a data set is empty.
        DocumentError: a document cannot be used, and the recipe's policy is to stop.
    """
    train = recipe.train
    result = fit(recipe, registry)
    if problems := cache_problems(result):
        raise RecipeError(problems)
    make = collator(build_on_meta(result), recipe)
    documents = train.update_documents(processes)
    samples = run_samples(recipe, datasets, make.sequencer, documents)
    of_processes = [
        Updates(samples, make, train, documents, rank=rank, processes=processes) for rank in range(processes)
    ]
    every = (
        (batch, len(update))
        for number in range(train.steps)
        for updates in of_processes
        for update in [updates[number]]
        for batch in update
    )
    plans = (
        plan(
            recipe,
            registry,
            processes=processes,
            machines=machines,
            device=device,
            make_batch=partial(_same_batch, batch),
            passes=passes,
        )
        for batch, passes in islice(every, batches)
    )
    return max(plans, key=lambda each: each.memory.peak)


def _same_batch(batch: Batch, _: Collator) -> Batch:
    return batch


def _unchecked(model: DreamModel) -> tuple[str, ...]:
    """Return the parts with a source that a gradient passes through and that lack gradient checkpointing."""
    reached = model.reached_parts()
    return tuple(
        name
        for name in WITH_SOURCE
        if name in reached
        and type(reached[name]).enable_gradient_checkpointing is Part.enable_gradient_checkpointing
    )


def _in_turns(model: DreamModel, recipe: Recipe) -> tuple[str, ...]:
    """Return the parts whose weights no process can map from files."""

    def is_mapped(name: str) -> bool:
        has_source = getattr(recipe.model, name).config.pretrained is not None
        cls: Any = type(model.parts()[name])
        own = getattr(cls.from_stored, "__func__", None)
        return has_source and own is not getattr(PretrainedPart.from_stored, "__func__", None)

    return tuple(name for name in WITH_SOURCE if not is_mapped(name))


def _sizes(model: DreamModel, recipe: Recipe) -> tuple[PartSize, ...]:
    """Return the size of each part; rows of added tokens are counted apart from the language model."""
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
