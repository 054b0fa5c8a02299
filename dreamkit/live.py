"""Writes a document with the model of a checkpoint, and shows it as it comes: what `dreamkit generate` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dreamkit.checkpoint import load_checkpoint
from dreamkit.document import Document
from dreamkit.errors import DreamkitError
from dreamkit.generate import DenoisingStep, DocumentDone, Event, ImageDone, ImageStarted, TextPiece
from dreamkit.render import page

PAGE, PICTURE = "index.html", "image-{}.png"
REASONS = {
    "end": "the model ended it",
    "tokens": "ended at the limit on tokens",
    "images": "ended at the limit on images",
    "length": "ended at the model's length",
}


def write_document(
    checkpoint: Path,
    prompt: Document,
    out: Path,
    *,
    title: str,
    seed: int,
    settings: Mapping[str, Any],
    overwrite: bool = False,
) -> str:
    """Goes on from `prompt`; writes its pictures and a page of the whole document to the folder `out`.

    Returns why the document ended. `settings` are those of `DreamModel.generate`. With `overwrite`, a former
    document in `out` is removed, and nothing else that is there.

    Raises:
        DreamkitError: `out` is in use.
        CheckpointError: the checkpoint cannot be loaded.
        DocumentError: the prompt does not fit into the model's length.
    """
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise DreamkitError(
            f"{out} is not an empty folder; name a new one by --out, or replace the document in it by --overwrite"
        )
    model, _ = load_checkpoint(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.sequencer().prompt(prompt)  # refuses one that does not fit, before anything is written
    out.mkdir(parents=True, exist_ok=True)
    for pattern in (PAGE, PICTURE.format("*")):
        for former in out.glob(pattern):
            former.unlink()
    done = follow(model.generate(prompt, seed=seed, **settings), out)
    reason = REASONS[done.reason]
    facts = {"checkpoint": checkpoint, "seed": seed, **settings, "end": reason}
    text = page(done.result, given=len(prompt), title=title, facts=facts)
    (out / PAGE).write_text(text, encoding="utf-8")
    return reason


def follow(events: Iterable[Event], out: Path) -> DocumentDone:
    """Shows the events of one document on the console, writes its pictures to `out`, and returns the last event.

    Text goes to standard output. A picture is shown as the name of its file, on a line of its own where it stands in
    the text; a bar on standard error counts the steps while it is drawn.
    """
    err = Console(stderr=True)
    columns = TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    task = bar.add_task("")
    done = None
    line_is_open = False
    try:
        for event in events:
            match event:
                case TextPiece(text=text):
                    print(text, end="", flush=True)
                    line_is_open = not text.endswith("\n")
                case ImageStarted():
                    if line_is_open:  # the bar would wipe the line out
                        print(flush=True)
                        line_is_open = False
                    bar.reset(task)
                    bar.start()
                case DenoisingStep(step=step, steps=steps):
                    bar.update(task, completed=step + 1, total=steps)
                case ImageDone(image=image, picture=picture):
                    bar.stop()
                    file = out / PICTURE.format(image)
                    picture.save(file)
                    print(file, flush=True)
                case DocumentDone():
                    done = event
    finally:
        bar.stop()
        if line_is_open:
            print(flush=True)
    assert done is not None, "a generation ends with its document"
    return done
