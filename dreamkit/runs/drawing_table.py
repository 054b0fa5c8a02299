"""The images that a run drew from its prompts after some steps, as a table of files. This module loads no torch."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from dreamkit.errors import count, excerpt
from dreamkit.pages.frame import shown
from dreamkit.runs.run_paths import DRAWINGS, step_folders, step_of

MOST_STEPS: Final = 10  # columns of the table
MOST_LINKED: Final = 200  # steps with links to their images
MOST_PROMPTS: Final = 32
SMALL: Final = 96  # pixels; a smaller image is enlarged without blurring
PNG: Final = b"\x89PNG\r\n\x1a\n"

STYLE: Final = """
.scroll { overflow-x: auto; }
.drawings { border-collapse: separate; border-spacing: 0; }
.drawings th { padding: .3rem .75rem .3rem 0; font-size: .85rem; font-weight: 500; text-align: left; }
.drawings thead th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.drawings tbody th { position: sticky; left: 0; z-index: 1; min-width: 7rem; max-width: 16rem;
  background: var(--page); overflow-wrap: anywhere; }
.drawings td { padding: .2rem; color: var(--soft); }
.drawings img { display: block; width: 5.5rem; height: 5.5rem; object-fit: contain; border-radius: 4px;
  border: 1px solid var(--rule); background: var(--card); }
.drawings img.small { image-rendering: pixelated; }
.steps { columns: 14rem; margin: .5rem 0 0; padding: 0; list-style: none; font-size: .85rem; }
"""


class Drawings:
    """The folders `drawings/step-N` of a run, with the prompts of its recipe.

    `base` is the folder of the page, to which links are relative.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], base: Path) -> None:
        self.folder, self.prompts, self.base = folder / DRAWINGS, prompts, base
        self.steps = step_folders(self.folder)

    def __len__(self) -> int:
        """Return the number of steps with drawings."""
        return len(self.steps)

    def cell(self, step: Path, number: int) -> str:
        """Return the image of a prompt after a step as a cell of a table."""
        image = step / f"{number}.png"
        prompt = self.prompts[number] if number < len(self.prompts) else f"prompt {number + 1}"
        about = f"{prompt}, after {count(f'{step_of(step):,}', 'step')}"
        kind = _is_small(image)
        if kind is None:
            return f"<td>{shown(_reason(image))}</td>"
        url, style = self.url(image), ' class="small"' if kind else ""
        return (
            f'<td><a href="{url}"><img{style} loading="lazy" src="{url}" alt="{shown(about)}" '
            f'title="{shown(about)}"></a></td>'
        )

    def url(self, path: Path) -> str:
        """Return the relative link to a file or folder."""
        return quote(os.fsencode(os.path.relpath(path, self.base)))

    def rows(self) -> int:
        """Return the number of prompts, at most `MOST_PROMPTS`: those of the recipe, or of the last drawings."""
        if self.prompts or not self.steps:
            return min(len(self.prompts), MOST_PROMPTS)
        numbers = [int(path.stem) for path in self.steps[-1].glob("*.png") if path.stem.isdecimal()]
        return min(max(numbers, default=-1) + 1, MOST_PROMPTS)

    def table(self) -> str:
        """Return a table of prompts and steps: of many steps a part, at even distances, and links to the others."""
        if not self.steps:
            return ""
        columns = spread(self.steps, MOST_STEPS)
        head = "".join(f'<th scope="col">step {step_of(step):,}</th>' for step in columns)
        rows = "".join(
            f'<tr><th scope="row">{self.heading(number)}</th>'
            f"{''.join(self.cell(step, number) for step in columns)}</tr>"
            for number in range(self.rows())
        )
        return (
            '<div class="scroll" id="drawings" tabindex="0" role="region" aria-label="drawings">'
            f'<table class="drawings"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
            f"{self._links(len(columns))}"
        )

    def heading(self, number: int) -> str:
        """Return the prompt of a row."""
        return shown(self.prompts[number] if number < len(self.prompts) else f"prompt {number + 1}")

    def _links(self, columns: int) -> str:
        if columns == len(self.steps):
            return ""
        linked = spread(self.steps, MOST_LINKED)
        items = []
        for step in linked:
            images = " ".join(
                f'<a href="{self.url(step / f"{number}.png")}">{number + 1}</a>'
                for number in range(self.rows())
            )
            items.append(f"<li>step {step_of(step):,}: {images}</li>")
        all_of_them = f'<a href="{self.url(self.folder)}/">{DRAWINGS}</a>'
        rest = f" {len(linked)} of them, at even distances; all are in {all_of_them}."
        return (
            f'<details id="all-drawings"><summary>All steps with drawings: {len(self.steps):,}</summary>'
            f'<p class="soft">The images by the numbers of their prompts.'
            f'{rest if len(linked) < len(self.steps) else ""}</p><ul class="steps">{"".join(items)}</ul></details>'
        )


def prompts_of(recipe: Any) -> list[str]:
    """Return the prompts of a stored recipe; none if it has none."""
    train = recipe.get("train") if isinstance(recipe, dict) else None
    prompts = train.get("prompts") if isinstance(train, dict) else None
    return [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []


def spread(items: Sequence[Path], most: int) -> list[Path]:
    """Return at most `most` items at even distances, with the first and the last one."""
    if len(items) <= most:
        return [*items]
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _reason(image: Path) -> str:
    """Return why there is no image: the run writes that in its place if a value is not finite."""
    file = image.with_suffix(".txt")
    return excerpt(file.read_text(errors="replace"), 100) if file.is_file() else "none"


def _is_small(image: Path) -> bool | None:
    """Return True if an image is small, None if there is no such file."""
    if not image.is_file():
        return None
    try:
        with image.open("rb") as file:
            head = file.read(24)
    except OSError:
        return None
    is_png = head.startswith(PNG) and len(head) == 24
    return is_png and max(struct.unpack(">II", head[16:])) < SMALL
