"""The settings of docs/plan.md for the shipped stages; `python tests/helpers/stage_settings.py` writes them there."""

from __future__ import annotations

from pathlib import Path

from dreamkit.errors import DreamkitError
from dreamkit.plan.proposal import Proposal, propose, yaml_value
from dreamkit.plan.sizes import format_bytes, parse_bytes
from dreamkit.plan.trials import Settings
from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
BEGIN, END = "<!-- settings of the stages -->\n", "<!-- end of the settings -->\n"
DEVICES = ((1, "24GiB"), (1, "80GiB"), (8, "80GiB"))
# each stands for those after it, which differ in data, steps, documents of an update and learning rate only
STAGES = {
    "dreamllm/paper/stage1-read": ("dreamllm/released/stage1-read",),
    "dreamllm/paper/stage1-draw": ("dreamllm/released/stage1-draw",),
    "dreamllm/paper/stage2": (
        "dreamllm/paper/stage3",
        "dreamllm/released/stage2",
        "dreamllm/released/stage3",
    ),
}


def table() -> str:
    """Return the table: a row for each of the stages, a column for each number and memory of devices."""
    head = ["", *(f"{devices} x {memory.replace('GiB', ' GiB')}" for devices, memory in DEVICES)]
    rows = [head, ["---"] * len(head)]
    rows += [[f"`{stage}`", *(_cell(stage, *each) for each in DEVICES)] for stage in STAGES]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def proposal(stage: str, devices: int, memory: str) -> Proposal:
    """Propose settings for a stage on so many devices."""
    registry = Registry.load()
    return propose(load_recipe(stage, (), registry), registry, parse_bytes(memory), devices=devices)


def cell(changes: Settings, peak: int) -> str:
    """Return settings and a planned peak as the table has them."""
    settings = ", ".join(
        f"`{key.removeprefix('train.')}: {yaml_value(value)}`" for key, value in changes.items()
    )
    return f"{settings}; {format_bytes(peak)}"


def _cell(stage: str, devices: int, memory: str) -> str:
    try:
        found = proposal(stage, devices, memory)
    except DreamkitError:
        return "nothing fits"
    return cell(found.changes, found.plan.memory.peak)


if __name__ == "__main__":
    new = table()
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{new}\n{END}{after}", encoding="utf-8")
