"""The report of a demo: one page with losses, figures and documents."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from dreamkit import Document, Image, Text, count
from dreamkit_digits import digits
from dreamkit_digits.curves import Stage, curve
from dreamkit_digits.measure import TARGETS, Measured, Written
from dreamkit_digits.phrases import WORDS, digit_in

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

DRAWINGS_SHOWN = 8
DOCUMENTS_SHOWN = 12

EXPLAINED: Mapping[str, tuple[str, str]] = {
    "judge_accuracy": ("Judge", "The classifier that judges drawings, on real held-out digits"),
    "read_accuracy": ("Reads", "Shown a held-out digit, the model names it"),
    "draw_accuracy": ("Draws", "Given a name, it draws that digit"),
    "sum_accuracy": ("Sums", "Shown two held-out digits, it draws their sum"),
    "count_accuracy": ("Counts", "Given a first word, every word and picture up to the third is right"),
    "sum_accuracy_unseen_pairs": (
        "Sums of new pairs",
        "Sums of two digits that were never added in training",
    ),
}


@dataclass(frozen=True)
class Run:
    """A finished demo: its stages, documents, figures (those of `metrics.json`) and checkpoint."""

    stages: Sequence[Stage]
    measured: Measured
    figures: Mapping[str, float]
    checkpoint: Path


def report(run: Run) -> str:
    """Return the page as HTML that needs no other file."""
    measured, figures = run.measured, run.figures
    steps = sum(stage.steps for stage in run.stages)
    train, heldout = len(digits.load("train")), len(digits.load("heldout"))
    body = [
        "<h1>A language model that reads and draws digits</h1>",
        f"<p>A tiny DreamLLM: a language model that reads with a vision encoder and draws with a diffusion "
        f"decoder. It was trained for {count(f'{steps:,}', 'step')} in three stages on {train:,} real handwritten "
        "digits. The vision encoder and the decoder were frozen. The model wrote everything below after training. "
        f"Every picture in a prompt is one of {count(heldout, 'digit')} that no part was trained on.</p>",
        f'<p class="note">Seed {figures["seed"]:g}, {count(round(figures["seconds"]), "second")}, '
        f"{figures['peak_memory_bytes'] / 1e9:.1f} GB of memory at the peak.</p>",
        "<h2>Figures</h2>",
        _table(figures),
        "<h2>Losses</h2>",
        curve(run.stages, "lm", "Text loss (cross entropy of a token)"),
        curve(run.stages, "denoising", "Image loss (squared error of the predicted noise)"),
        '<p class="note">Thin: logged values. Thick: their running mean. The image loss depends mostly on the amount '
        "of noise, which is random, and little on the condition. So it changes little.</p>",
        "<h2>Drawings</h2>",
        "<p>One row a prompt, such as “a seven”; each image starts from different noise.</p>",
        _drawings(measured.draws),
        "<h2>Sums</h2>",
        f"<p>The prompt is on grey. The model wrote and drew the rest. {_words_right(measured.sums)}</p>",
        _documents(_spread(measured.sums), "short"),
        "<h2>Sums of pairs never trained</h2>",
        f"<p>No training document adds these two digits in this order. {_words_right(measured.unseen_sums)}</p>",
        _documents(_spread(measured.unseen_sums), "short"),
        "<h2>Counting</h2>",
        "<p>The prompt is one word. The model decides when to draw, reads its own image, and continues.</p>",
        _documents(_spread(measured.counts)),
        "<h2>Chat</h2>",
        _documents(measured.chats),
        "<h2>Next</h2>",
        f'<pre><code>dreamkit generate {escape(str(run.checkpoint))} "a seven"\n'
        f"dreamkit inspect {escape(str(run.checkpoint))}</code></pre>",
    ]
    style = resources.files("dreamkit_digits").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>dreamkit demo: digits</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _table(figures: Mapping[str, float]) -> str:
    rows = []
    for name, (title, meaning) in EXPLAINED.items():
        target = TARGETS.get(name)
        reached = "" if target is None else "reached" if figures[name] >= target else "missed"
        numbers = (
            f"{figures[name]:.1%}",
            f"{figures[f'{name}_samples']:g}",
            "" if target is None else f"{target:.0%}",
        )
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        rows.append(
            f'<tr><th scope="row">{title}</th><td>{meaning}</td>{cells}<td class="{reached}">{reached}</td></tr>'
        )
    heads = ("Figure", "What is measured", "Right", "Samples", "Target", "")
    classes = ("", "", "number", "number", "number", "")
    head = "".join(
        f'<th scope="col" class="{kind}">{title}</th>' for title, kind in zip(heads, classes, strict=True)
    )
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _drawings(draws: Sequence[Written]) -> str:
    rows = []
    for digit, written in groupby(draws, key=lambda each: each.expected[0]):
        cells = []
        for each in list(written)[:DRAWINGS_SHOWN]:
            pictures = [piece.picture for piece in each.continuation if isinstance(piece, Image)]
            shown = zip(pictures, each.seen, strict=True)
            cell = "".join(_drawn(picture, seen, digit) for picture, seen in shown)
            cells.append(f"<td>{cell or 'nothing'}</td>")
        rows.append(f'<tr><th scope="row">{WORDS[digit]}</th>{"".join(cells)}</tr>')
    return f'<div class="scroll"><table class="drawings"><tbody>{"".join(rows)}</tbody></table></div>'


def _documents(documents: Sequence[Written], kind: str = "") -> str:
    items = "".join(f"<li>{_document(each)}</li>" for each in documents)
    return f'<ul class="documents {kind}">{items}</ul>'


def _document(written: Written) -> str:
    """Return a document in one row, or in one row a turn, with its prompt on grey."""
    prompt = "".join(_prompt(segment) for segment in written.document.segments[: written.prompt_segments])
    rows = (
        f'<span class="piece prompt">{prompt}</span>',
        f'<span class="piece">{_continuation(written)}</span>{_verdict(written)}',
    )
    if not written.document.is_conversation:
        return "".join(rows)
    return "".join(
        f'<div class="turn"><span class="speaker">{speaker}</span>{row}</div>'
        for speaker, row in zip(("User", "Assistant"), rows, strict=True)
    )


def _verdict(written: Written) -> str:
    if written.right:
        return ""
    return f'<span class="verdict">wrong: {", ".join(WORDS[digit] for digit in written.expected)} expected</span>'


def _continuation(written: Written) -> str:
    """Return the continuation. Documents have several expected digits in order; a sum or a chat has one."""
    parts, count = [], 0
    for segment in written.continuation:
        if isinstance(segment, Text):
            parts.append(escape(segment.text))
        else:
            expected = written.expected[min(count, len(written.expected) - 1)]
            parts.append(_drawn(segment.picture, written.seen[count], expected))
            count += 1
    return "".join(f"<span>{part}</span>" for part in parts) or "<span>nothing</span>"


def _prompt(segment: Text | Image) -> str:
    if isinstance(segment, Text):
        return f"<span>{escape(segment.text)}</span>"
    return _picture(segment.picture, "a handwritten digit")


def _drawn(picture: PILImage, seen: int, expected: int) -> str:
    if seen == expected:
        return f"<figure>{_picture(picture, f'drawing of {WORDS[expected]}')}</figure>"
    alt = f"drawing of {WORDS[expected]} that looks like {WORDS[seen]}"
    return f'<figure class="wrong">{_picture(picture, alt)}<figcaption>✗ {WORDS[seen]}</figcaption></figure>'


def _picture(picture: PILImage, alt: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" width="48" height="48" src="data:image/png;base64,{data}">'


def _words_right(sums: Sequence[Written]) -> str:
    """Return a sentence on how often the word of the sum was right, apart from its drawing."""
    right = sum(digit_in(Document(each.continuation).text) == each.expected[0] for each in sums)
    return f"The word was right in {right} of {len(sums)}."


def _spread(written: Sequence[Written]) -> Sequence[Written]:
    """Return a few documents at even distances, so that none is picked by its quality."""
    count = min(DOCUMENTS_SHOWN, len(written))
    return [written[number * len(written) // count] for number in range(count)]
