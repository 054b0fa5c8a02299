"""Writes a document with the model of a checkpoint, and shows it as it comes: what `dreamkit generate` does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.cli.page import page
from dreamkit.document import Document
from dreamkit.errors import DreamkitError
from dreamkit.model.events import DenoisingStep, DocumentDone, Event, ImageDone, ImageStarted, TextPiece
from dreamkit.progress.bars import Bar
from dreamkit.storage.folders import in_use_reason

PAGE, PICTURE = "index.html", "image-{}.png"
# A terminal would obey these characters, and a model may write any of them.
UNPRINTED = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}
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
    if (what := in_use_reason(out)) and not (overwrite and out.is_dir()):
        replace = ", or replace the document in it by --overwrite" if out.is_dir() else ""
        raise DreamkitError(f"{out} {what}; name a new folder by --out{replace}")
    model, _ = load_checkpoint(checkpoint)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    output = Output(out)
    done = follow(model.generate(prompt, seed=seed, **settings), output)
    reason = REASONS[done.reason]
    facts = {"checkpoint": checkpoint, "seed": seed, **settings, "end": reason}
    text = page(done.result, given=len(prompt), title=title, facts=facts)
    output.file(PAGE).write_text(text, encoding="utf-8")
    return reason


@dataclass
class Output:
    """The folder of a document, made and rid of a former document when the first file of this one is written."""

    folder: Path
    is_begun: bool = False

    def file(self, name: str) -> Path:
        if not self.is_begun:
            self.folder.mkdir(parents=True, exist_ok=True)
            for pattern in (PAGE, PICTURE.format("*")):
                for former in self.folder.glob(pattern):
                    former.unlink()
            self.is_begun = True
        return self.folder / name


def follow(events: Iterable[Event], output: Output) -> DocumentDone:
    """Shows the events of one document on the console, writes its pictures to `output`, and returns the last event.

    Text goes to standard output. A picture is shown as the name of its file, on a line of its own where it stands in
    the text; a bar on standard error counts the steps while it is drawn.
    """
    bar = Bar("drawing", transient=True)
    done = None
    line_is_open = False
    try:
        for event in events:
            match event:
                case TextPiece(text=text):
                    print(text.translate(UNPRINTED), end="", flush=True)
                    line_is_open = not text.endswith("\n")
                case ImageStarted():
                    if line_is_open:  # the bar would wipe the line out
                        print(flush=True)
                        line_is_open = False
                    bar.move(0)
                case DenoisingStep(step=step, steps=steps):
                    bar.move(step + 1, steps)
                case ImageDone(image=image, picture=picture):
                    bar.stop()
                    file = output.file(PICTURE.format(image))
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
