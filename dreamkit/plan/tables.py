"""The report of a plan, as tables and text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from dreamkit.errors import count
from dreamkit.plan.plan import Plan
from dreamkit.plan.sizes import format_bytes, format_count
from dreamkit.recipe.sections import Recipe

LEFT_OUT = (
    "This counts live tensors. It leaves out the device's context, workspaces of libraries, communication and\n"
    "fragmentation: a few GiB on a GPU."
)


def report(plan: Plan, recipe: Recipe) -> Iterator[RenderableType]:
    """Yield the parts of the output of `dreamkit plan`."""
    for steps in plan.chain:
        yield "\n  -> ".join(map(str, steps))
    yield ""
    yield _parts(plan)
    yield ""
    yield from _assumptions(plan, recipe)
    yield ""
    yield _memory(plan)
    yield ""
    peak, flops = format_bytes(plan.memory.peak), f"{format_count(plan.flops)}FLOPs"
    if plan.processes == 1:
        yield f"peak {peak}; a step computes {flops}"
    else:
        together = f"{format_count(plan.flops * plan.processes)}FLOPs"
        yield f"peak {peak} on each device; a step computes {flops} on each device, {together} together"
    yield LEFT_OUT


def _parts(plan: Plan) -> Table:
    table = Table("part", "component", box=None, pad_edge=False)
    for name in ("parameters", "trainable", "bytes"):
        table.add_column(name, justify="right")
    for part in plan.parts:
        table.add_row(
            part.part, part.component, f"{part.parameters:,}", f"{part.trainable:,}", format_bytes(part.bytes)
        )
    whole = format_bytes(sum(part.bytes for part in plan.parts))
    table.add_row("total", "", f"{plan.parameters:,}", f"{plan.trainable:,}", whole)
    return table


def _assumptions(plan: Plan, recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    rows, batches = count(plan.rows, "row"), f"{count(plan.passes, 'batch')} a step"
    documents = f"a batch of {count(plan.documents, 'document')} of"
    if plan.images is None:
        tokens = count(f"{plan.tokens:,}", "token")
        yield f"{documents} the recipe's data, {tokens} in {rows} of {plan.length}; {batches}"
    else:
        yield (
            f"{documents} {count(plan.length, 'token')} each, in {rows}; {batches}\n"
            f"{count(plan.images, 'image')} in a document (--images), drawn and read back; a row has room for "
            f"{plan.most_images}"
        )
    is_fsdp = plan.processes > 1 or train.cpu_offload
    shared = count(plan.processes, "process") + (f" under FSDP, sharding {train.sharding}" if is_fsdp else "")
    weights = "float64" if train.precision == "float64" else "float32"
    yield (
        f"weights in {weights}, computing in {train.precision}, gradient checkpointing "
        f"{'on' if train.gradient_checkpointing else 'off'}, {shared}"
    )
    if train.cpu_offload:
        yield f"{format_bytes(plan.memory.on_host)} of weights, gradients and optimizer states of a process on its host"
    if plan.in_turns:
        sizes = {part.part: format_bytes(part.bytes) for part in plan.parts}
        listed = ", ".join(f"{name} ({sizes[name]})" for name in plan.in_turns)
        yield f"loaded whole, by one process of a machine at a time: {listed}"
    if plan.unchecked:
        yield f"no gradient checkpointing in {', '.join(plan.unchecked)}, which cannot recompute activations"


def _memory(plan: Plan) -> Table:
    memory = plan.memory
    table = Table("memory of a device", box=None, pad_edge=False)
    for moment in ("forward and backward", "optimizer step"):
        table.add_column(moment, justify="right")
    rows = {**memory.terms, "total": (memory.while_computing, memory.while_updating)}
    for name in ("gathered by FSDP", "moving averages"):
        if rows[name] == (0, 0):
            del rows[name]
    for name, moments in rows.items():
        table.add_row(name, *(format_bytes(count) if count else "-" for count in moments))
    return table
