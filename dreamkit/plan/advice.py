"""What to change where a plan does not fit a device."""

from __future__ import annotations

import json
from dataclasses import asdict

from dreamkit.plan.plan import Plan
from dreamkit.plan.sizes import in_bytes
from dreamkit.recipe.sections import AdapterSection, Recipe


def misfit(plan: Plan, recipe: Recipe, limit: int) -> list[str]:
    """Sentences on why a step takes more than `limit` bytes, and what would help; none where it fits."""
    memory = plan.memory
    if memory.peak <= limit:
        return []
    moment, terms = fullest(plan)
    largest = max(terms, key=lambda name: terms[name])
    said = [
        f"{in_bytes(memory.peak)} do not fit into {in_bytes(limit)}: {in_bytes(memory.peak - limit)} too much, "
        f"{moment}; the largest term is {largest}, {in_bytes(terms[largest])}"
    ]
    fixed = memory.peak - (memory.computing.activations if moment == COMPUTING else 0)
    if fixed > limit:
        said.append(
            f"without activations it is still {in_bytes(fixed)}, so a smaller batch alone will not do:"
        )
        said += _for_states(plan, recipe)
    else:
        said.append(
            f"{in_bytes(limit - fixed)} are left for {in_bytes(memory.computing.activations)} of activations:"
        )
    if moment == COMPUTING:
        said += _for_activations(plan, recipe)
        if fixed <= limit:
            said += _for_states(plan, recipe)
    return said


COMPUTING, UPDATING = "in the forward and backward pass", "in the optimizer's step"


def fullest(plan: Plan) -> tuple[str, dict[str, int]]:
    """The moment of the peak, and what each term takes in it."""
    memory = plan.memory
    if memory.while_computing >= memory.while_updating:
        return COMPUTING, {
            "weights": memory.weights,
            "gathered weights": memory.gathered,
            "optimizer states": memory.states,
            "gradients": memory.computing.gradients,
            "activations": memory.computing.activations,
        }
    return UPDATING, {
        "weights": memory.weights,
        "optimizer states": memory.states,
        "gradients": memory.gradients,
        "what the optimizer makes for a while": memory.scratch,
    }


def _for_activations(plan: Plan, recipe: Recipe) -> list[str]:
    train = recipe.train
    said = []
    if not train.gradient_checkpointing:
        said.append("  - recompute activations: train.gradient_checkpointing=true")
    if train.precision == "float32":
        said.append("  - halve most activations: train.precision=bfloat16")
    if train.batch_size > 1:
        half = train.batch_size // 2
        said.append(
            f"  - a smaller batch, accumulated: train.batch_size={half} "
            f"train.accumulation={train.accumulation * -(-train.batch_size // half)}"
        )
    said.append(f"  - shorter rows: train.max_length below {plan.length}")
    if plan.images > 1:
        said.append(f"  - fewer images in a document than {plan.images}")
    return said


def _for_states(plan: Plan, recipe: Recipe) -> list[str]:
    said = [
        f"  - more processes, between which weights and states are divided: --processes {2 * plan.processes}"
    ]
    adapters, trainable = recipe.model.adapters, recipe.train.trainable
    for target in ("language_model", "image_decoder", "vision_encoder"):
        if target in trainable and all(adapter.target != target for adapter in adapters):
            listed = ", ".join(map(_written, (*adapters, AdapterSection(target))))
            rest = ",".join(name for name in trainable if name != target)
            said.append(
                f"  - an adapter instead of all weights: 'model.adapters=[{listed}]' 'train.trainable=[{rest}]'"
            )
    return said


def _written(adapter: AdapterSection) -> str:
    """An adapter as a recipe says it: its target, and the settings that are not the defaults."""
    usual = asdict(AdapterSection(adapter.target))
    settings = {key: value for key, value in asdict(adapter).items() if value != usual[key]}
    return f"{{{', '.join([f'target: {adapter.target}', *(f'{k}: {json.dumps(v)}' for k, v in settings.items())])}}}"
