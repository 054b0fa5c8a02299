"""The report of a proposal: what was tried, the arithmetic of what fits, the settings and how to train with them."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from dreamkit.errors import count
from dreamkit.plan.memory import layout_of
from dreamkit.plan.proposal import QUANTIZE, Proposal, yaml_value
from dreamkit.plan.sizes import format_bytes
from dreamkit.plan.tables import LEFT_OUT, assumptions
from dreamkit.plan.trials import USABLE


def report_proposal(proposal: Proposal) -> Iterator[RenderableType]:
    """Yield the parts of the output of `dreamkit plan --devices`, up to the overlay."""
    yield _trials(proposal)
    yield ""
    yield from assumptions(proposal.plan, proposal.recipe)
    yield ""
    yield _arithmetic(proposal)
    yield LEFT_OUT
    yield from _notes(proposal)


def _trials(proposal: Proposal) -> Table:
    """Return a table of the trials in their order, with the settings that differ among them."""
    trials = proposal.trials
    keys = [key for key in trials[0].settings if len({trial.settings[key] for trial in trials}) > 1]
    table = Table(
        *(key.removeprefix("train.").removeprefix("model.") for key in keys), box=None, pad_edge=False
    )
    table.add_column("peak", justify="right")
    table.add_column("")
    for trial in trials:
        result = "fits" if trial.fits else "too much" if trial.is_step else "too much without activations"
        values = (yaml_value(trial.settings[key]) for key in keys)
        table.add_row(*values, format_bytes(trial.peak), result)
    return table


def _arithmetic(proposal: Proposal) -> Table:
    plan, memory, train = proposal.plan, proposal.plan.memory, proposal.recipe.train
    shards = layout_of(train, proposal.devices, proposal.machines).shards
    divided = f" / {count(shards, 'device')}" if shards > 1 else ""
    whole = format_bytes(sum(part.bytes for part in plan.parts))
    trained = format_bytes(plan.trainable * (8 if train.precision == "float64" else 4))
    on_host = " on the host" if train.cpu_offload else ""
    sources = {
        "weights": f"{whole}{divided}{on_host}",
        **(
            {"gathered by FSDP": "tensors of the root, two units, gradients of one"}
            if memory.gathered
            else {}
        ),
        "optimizer states": f"for {trained} of trained weights{divided}{on_host}",
        "gradients": f"of {trained} of trained weights{divided}{on_host}",
        "activations": f"{plan.rows} x {count(plan.length, 'token')}",
    }
    table = Table("memory of a device", box=None, pad_edge=False)
    for moment in ("forward and backward", "optimizer step"):
        table.add_column(moment, justify="right")
    table.add_column("of")
    for name, moments in memory.terms.items():
        if any(moments) or name in sources:
            table.add_row(
                name, *(format_bytes(each) if each else "-" for each in moments), sources.get(name, "")
            )
    both = (memory.while_computing, memory.while_updating)
    table.add_row("total", *map(format_bytes, both))
    allowed = format_bytes(proposal.usable)
    table.add_row("usable", allowed, allowed, f"{USABLE:.0%} of {format_bytes(proposal.memory)}")
    table.add_row("left", *(format_bytes(proposal.usable - each) for each in both))
    return table


def _notes(proposal: Proposal) -> Iterator[str]:
    changes = proposal.changes
    if "train.global_batch" in changes:
        yield (
            f"train.global_batch={changes['train.global_batch']} stands for batch_size and accumulation of the recipe "
            "on these devices"
        )
    if "train.precision" in changes:
        yield (
            "nothing fits in float32: bfloat16 rounds what a step computes, so the losses differ a little; to do "
            "without, add train.precision=float32"
        )
    if QUANTIZE in changes:
        yield (
            f"nothing fits with whole weights of the frozen language model; with {changes[QUANTIZE]} its outputs are "
            f"a little different; to do without, add {QUANTIZE}=null"
        )
    if proposal.recipe.train.cpu_offload:
        each = proposal.devices // proposal.machines
        yield f"the host of each machine needs {format_bytes(proposal.plan.memory.on_host * each)} besides"
