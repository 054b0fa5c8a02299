"""Generation of a document by a checkpoint's model, shown on the console and written to a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL.Image import Image as Picture

from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.cli.page import page
from dreamkit.document import Document, Image, Role, Segment, Text
from dreamkit.errors import DreamkitError
from dreamkit.interrupts import deferred
from dreamkit.model.events import (
    DenoisingStep,
    DocumentDone,
    EndReason,
    Event,
    ImageDone,
    ImageStarted,
    TextPiece,
)
from dreamkit.model.placing import Placement
from dreamkit.progress.bars import Bar
from dreamkit.storage.folders import filled_folder, in_use_reason
from dreamkit.storage.writing import write_text, writing

PAGE, PICTURE = "index.html", "image-{}.png"
WRITTEN = re.compile(r"index\.html|image-\d+\.png")  # names of an earlier document's files
# Control characters: a model may write them, and a terminal would execute them.
UNPRINTED = {code: "\ufffd" for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}
REASONS = {
    "end": "the model ended the document",
    "tokens": "the document reached the limit on tokens",
    "images": "the document reached the limit on images",
    "length": "the document reached the model's maximum length",
    "stop": "the model wrote a stop string",
}


def write_document(
    checkpoint: Path,
    prompt: Document,
    out: Path,
    *,
    title: str,
    seed: int,
    settings: Mapping[str, Any],
    to: Placement,
    overwrite: bool = False,
) -> str:
    """Continue `prompt`; write its images and a page of the whole document to the folder `out`.

    `settings` are those of `DreamModel.generate`; the model is put `to` a device. With `overwrite`, an earlier document
    in `out` is replaced; other files stay. The files appear at the end, all together. Return the reason why the
    document ended.

    An interrupt during the generation writes the page of what was made so far, if that is anything.

    Raises:
        KeyboardInterrupt: a note names the page, if it was written.
        DreamkitError: `out` is in use.
        OutputError: `out` cannot be written, or another command is writing it.
        CheckpointError: the checkpoint cannot be loaded.
        DocumentError: the prompt does not fit into the model's length.
    """
    with filled_folder(out, earlier=WRITTEN) as staging:
        if (reason := in_use_reason(out)) and not (overwrite and out.is_dir()):
            replace = ", or replace its document with --overwrite" if out.is_dir() else ""
            raise DreamkitError(f"{out} {reason}; pass a new folder with --out{replace}")
        model, _ = load_checkpoint(checkpoint, dtype=to.dtype)
        to.put(model)
        # nobody would see previews
        events = model.generate(prompt, seed=seed, **{**settings, "preview_every": 0})
        made = follow(events, Output(out, staging), prompt)
        reason = REASONS[made.end] if made.interrupt is None else str(made.interrupt) or "interrupted"
        facts = {"checkpoint": checkpoint, "seed": seed, **settings, "end": reason}
        text = page(made.document, prompt_segments=len(prompt), title=title, facts=facts)
        write_text(staging / PAGE, text)
    if made.interrupt is not None:
        made.interrupt.add_note(f"wrote what was made so far to {out / PAGE}")
        raise made.interrupt
    return reason


@dataclass(frozen=True)
class Made:
    """The document of a generation, which ended by itself or by an interrupt."""

    document: Document
    end: EndReason = "end"
    interrupt: KeyboardInterrupt | None = None


@dataclass(frozen=True)
class Output:
    """The folder of a document, and the one from which its files move there at the end."""

    folder: Path
    staging: Path

    def save(self, picture: Picture, name: str) -> Path:
        """Write an image to the file `name`; return the path that it has at the end."""
        with writing(file := self.staging / name):
            picture.save(file)
        return self.folder / name


def follow(events: Iterable[Event], output: Output, prompt: Document) -> Made:
    """Show the events of one document on the console, write its images to `output`, and return the document.

    Print text, and the file name of each image on a line of its own, to standard output. A bar on standard error
    counts the steps of the image being drawn.

    Raises:
        KeyboardInterrupt: it came before anything was made.
    """
    bar = Bar("drawing", transient=True)
    made = None
    written: list[Segment] = []
    role: Role | None = "assistant" if prompt.is_conversation else None
    line_is_open = False
    try:
        for event in events:
            match event:
                case TextPiece(text=text):
                    written.append(Text(text, role=role))
                    print(text.translate(UNPRINTED), end="", flush=True)
                    line_is_open = not text.endswith("\n")
                case ImageStarted():
                    if line_is_open:  # the bar would erase the line
                        print(flush=True)
                        line_is_open = False
                    bar.move(0)
                case DenoisingStep(step=step, steps=steps):
                    bar.move(step + 1, steps)
                case ImageDone(image=image, picture=picture):
                    bar.stop()
                    with deferred():
                        written.append(Image(picture, draw=True, role=role))
                        file = output.save(picture, PICTURE.format(image))
                    print(file, flush=True)
                case DocumentDone():
                    made = Made(event.result, event.reason)
    except KeyboardInterrupt as interrupt:
        if not written:
            raise
        made = made or Made(Document((*prompt.segments, *_joined(written))), interrupt=interrupt)
    finally:
        bar.stop()
        if line_is_open:
            print(flush=True)
    assert made is not None, "a generation ends with DocumentDone"
    return made


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield segments with the pieces of a text joined."""
    for _, group in groupby(segments, key=type):
        pieces = list(group)
        texts = [piece for piece in pieces if isinstance(piece, Text)]
        if texts:
            yield replace(texts[0], text="".join(text.text for text in texts))
        else:
            yield from pieces
