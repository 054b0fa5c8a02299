"""A few steps of training, then a document: `Registry.load().get("task", "shapes-demo")().run(folder)`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamkit import (
    DenoisingStep,
    DocumentDone,
    DreamModel,
    ImageDone,
    ImageStarted,
    Registry,
    Task,
    TextPiece,
    TrainingError,
    collect,
    load_checkpoint,
    load_recipe,
    save_checkpoint,
    train_recipe,
)


class Demo(Task):
    def run(self, out: Path, *, seed: int = 0) -> Mapping[str, Any]:
        registry, losses = Registry.load(), []
        recipe = load_recipe("shapes/five", [f"train.seed={seed}"], registry)
        result = train_recipe(
            recipe, registry, out / "run", on_log=lambda entry: losses.append(entry["loss"])
        )
        if not all(loss < 1000 for loss in losses):
            raise TrainingError(f"the losses are {losses}, but less than 1000 was promised")
        save_checkpoint(result.model, out / "copy", registry=registry)
        model, _ = load_checkpoint(out / "copy", registry)
        figures = {"loss": losses[-1], **written(model, seed)}
        (out / "figures.json").write_text(json.dumps(figures))
        return figures


def written(model: DreamModel, seed: int) -> dict[str, Any]:
    """What comes of one prompt, counted."""
    pieces = started = steps = 0
    pictures, events = [], []
    for event in model.generate("red", seed=seed, ignore_eos=True):
        events.append(event)
        match event:
            case TextPiece(text=text):
                pieces += bool(text)
            case ImageStarted():
                started += 1
            case DenoisingStep(preview=preview):
                steps += preview().width > 0
            case ImageDone(picture=picture):
                pictures.append(picture)
            case DocumentDone(reason=reason):
                ended = reason
    (document,) = collect(events)
    assert len(document.images) == len(pictures) == started
    return {"pieces": pieces, "pictures": started, "steps": steps, "ended": ended}
