"""The picture of an update in docs/training.md, drawn from real batches: `python tests/helpers/update_picture.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import layouts
from document_svg import CHARACTER, STYLE
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.data.batch import Batch
from dreamkit.data.updates import Updates
from dreamkit.document import Document, Text
from dreamkit.registry.registry import Registry
from dreamkit.training.reading_updates import make_updates

PATH = Path(__file__).parents[2] / "docs/images/update.svg"
LENGTHS = (30, 14, 52, 22, 9, 26, 40)  # letters of the documents, a token each
PROCESSES, ROW = 2, 64  # tokens of a row
SCALE, BAR, GAP, PAD = 4.6, 26, 8, 14  # pixels of a token, heights of a row and between rows, space in a card
LEFT = 130  # of the rows in a card
WIDTH = LEFT + round(ROW * SCALE) + 2 * PAD


def shares() -> list[list[Batch]]:
    """Return the batches of the first update in each process."""
    recipe = layouts.recipe(global_batch=len(LENGTHS), micro_batch=1, max_length=ROW)
    model = build(fit(recipe, Registry.load()))
    documents = [Document((Text("x" * length),)) for length in LENGTHS]
    updates = make_updates(recipe, model, [layouts.TinyDocuments(documents)], None, len(LENGTHS))
    return [
        Updates(
            updates.samples, updates.collator, recipe.train, len(LENGTHS), rank=number, processes=PROCESSES
        )[0]
        for number in range(PROCESSES)
    ]


def row_blocks(batch: Batch, row: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and place of each document in a row."""
    for start, end in batch.spans[row]:
        number = int(batch.segment_ids_BT[row, start])
        if number < len(batch.places):  # not a dummy
            yield start, end, batch.places[number]


def text(x: float, y: float, content: str, style: str = "soft") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{content}</text>'


def card(y: float, head: str, rows: Sequence[tuple[str, list[tuple[int, int, int]]]]) -> tuple[str, float]:
    """Return a card with a bar of documents for each row, and its height."""
    height = 2 * PAD + 16 + len(rows) * (BAR + GAP)
    parts = [f'<rect class="card" x="0.5" y="{y + 0.5:g}" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>']
    parts.append(text(PAD, y + PAD + 10, head, "head ink"))
    for number, (label, blocks) in enumerate(rows):
        top = y + PAD + 24 + number * (BAR + GAP)
        parts.append(text(PAD, top + 17, label))
        parts.append(
            f'<rect class="token" x="{LEFT}" y="{top:g}" width="{ROW * SCALE:g}" height="{BAR}" rx="3"/>'
        )
        for start, end, place in blocks:
            x, width = LEFT + start * SCALE, (end - start) * SCALE - 2
            parts.append(
                f'<rect class="read" x="{x:g}" y="{top + 0.5:g}" width="{width:g}" height="{BAR - 1}" rx="3"/>'
            )
            parts.append(text(x + width / 2 - CHARACTER / 2, top + 17, str(place), "read"))
        if not blocks:
            parts.append(text(LEFT + 10, top + 17, "dummy of weight 0"))
    return "\n".join(parts), height


def picture() -> str:
    """Return the SVG."""
    y, parts = 0.0, []
    every = shares()
    passes = max(map(len, every))
    for number, batches in enumerate(every):
        places = [place for batch in batches for place in batch.places]
        rows = [
            (f"pass {index + 1}", [] if batch is None else list(row_blocks(batch, 0)))
            for index, (batch, _) in enumerate(zip_longest(batches, range(passes)))
        ]
        listed = ", ".join(map(str, sorted(places)))
        content, height = card(y, f"device {number}: documents {listed}", rows)
        parts.append(content)
        y += height + GAP
    total = f"global_batch: {len(LENGTHS)}, micro_batch: 1, {PROCESSES} devices"
    parts.append(text(PAD, y + 14, f"{total}: one update"))
    height = round(y + 24)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>The documents of an update on {PROCESSES} devices, packed into rows</title>\n<style>{STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PATH.write_text(picture(), encoding="utf-8")
