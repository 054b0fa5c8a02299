"""Changes that help if a plan needs more memory than a device has."""

from __future__ import annotations

import json
from dataclasses import asdict

from dreamkit.plan.plan import Plan
from dreamkit.plan.sizes import format_bytes
from dreamkit.recipe.sections import WITH_SOURCE, AdapterSection, Recipe


def memory_advice(plan: Plan, recipe: Recipe, limit: int, *, processes: str = "--processes") -> list[str]:
    """Return lines on why a step takes more than `limit` bytes and what would help; none if it fits.

    `processes` is the option of the command for the number of processes.
    """
    memory = plan.memory
    if memory.peak <= limit:
        return []
    is_computing = memory.while_computing >= memory.while_updating
    moment = "in the forward and backward pass" if is_computing else "in the optimizer's step"
    terms = {name: both[0] if is_computing else both[1] for name, both in memory.terms.items()}
    largest = max(terms, key=terms.__getitem__)
    lines = [
        f"{format_bytes(memory.peak)} do not fit into {format_bytes(limit)}: {format_bytes(memory.peak - limit)} too "
        f"much, {moment}; the largest term is {largest}, {format_bytes(terms[largest])}"
    ]
    activations = memory.computing.activations
    fixed = memory.peak - (activations if is_computing else 0)
    if fixed > limit:
        lines.append(
            f"{format_bytes(fixed)} remain without activations, so a smaller batch alone does not help:"
        )
        lines += _advice_on_states(plan, recipe, processes)
    else:
        lines.append(
            f"{format_bytes(limit - fixed)} are left for {format_bytes(activations)} of activations:"
        )
    if is_computing:
        lines += _advice_on_activations(plan, recipe)
        if fixed <= limit:
            lines += _advice_on_states(plan, recipe, processes)
    return lines


def _advice_on_activations(plan: Plan, recipe: Recipe) -> list[str]:
    train = recipe.train
    lines = []
    if not train.gradient_checkpointing:
        lines.append("  - recompute activations: train.gradient_checkpointing=true")
    if train.precision != "bfloat16":
        lines.append("  - halve most activations: train.precision=bfloat16")
    if train.batch_size is not None and train.accumulation is not None and train.batch_size > 1:
        half = train.batch_size // 2
        lines.append(
            f"  - a smaller batch, accumulated: train.batch_size={half} "
            f"train.accumulation={train.accumulation * -(-train.batch_size // half)}"
        )
    if train.global_batch is not None and plan.rows > 1:
        lines.append(f"  - fewer rows in a forward pass: train.micro_batch={plan.rows // 2}")
    if plan.images is not None:
        lines.append(f"  - shorter rows: train.max_length below {plan.length}")
    if plan.images is not None and plan.images > 1:
        lines.append(f"  - fewer images in a document than {plan.images}")
    return lines


def _advice_on_states(plan: Plan, recipe: Recipe, option: str) -> list[str]:
    lines = [f"  - more processes, which share weights and states: {option} {2 * plan.processes}"]
    if recipe.train.optimizer == "adamw" and not recipe.train.cpu_offload:
        lines.append(
            "  - smaller optimizer states, by another update of the weights (adamw8bit is a third): "
            "train.optimizer=adafactor"
        )
    adapters, trainable = recipe.model.adapters, recipe.train.trainable
    for target in WITH_SOURCE:
        if target in trainable and all(adapter.target != target for adapter in adapters):
            listed = ", ".join(map(_as_yaml, (*adapters, AdapterSection(target))))  # type: ignore[arg-type]
            rest = ",".join(name for name in trainable if name != target)
            lines.append(
                f"  - an adapter instead of all weights: 'model.adapters=[{listed}]' 'train.trainable=[{rest}]'"
            )
    return lines


def _as_yaml(adapter: AdapterSection) -> str:
    """Return an adapter as a recipe writes it: its target, and settings that differ from their defaults."""
    defaults = asdict(AdapterSection(adapter.target))
    settings = {key: value for key, value in asdict(adapter).items() if value != defaults[key]}
    return f"{{{', '.join([f'target: {adapter.target}', *(f'{k}: {json.dumps(v)}' for k, v in settings.items())])}}}"
