"""The trial of one combination: check, build, train, save, load and generate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PIL
from torch import Tensor

from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.checkpoints.load import load_checkpoint
from dreamkit.checkpoints.save import save_checkpoint
from dreamkit.data.batch import Batch, Collator
from dreamkit.document import Document, Image, Text
from dreamkit.model.events import ImageDone, collect
from dreamkit.model.model import DreamModel
from dreamkit.parts.sampling import unit_noise
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.registry.registry import Registry
from product.parts import Combination, Parts

LEARNING_RATE = 1e-3
LETTER = "A"


def recipe(combination: Combination, parts: Parts) -> dict[str, Any]:
    """Return a recipe of stage II with tiny parts: all but the vision encoder and the image decoder are trained."""
    model = {key: parts[key][name] for key, name in combination._asdict().items()}
    trainable = ["language_model", "visual_projector", "condition_projector", "dream_queries", "new_tokens"]
    return {
        "model": {**model, "visual_projector": {"name": "linear"}, "dream_queries": 3},
        "train": {"trainable": trainable, "steps": 1, "batch_size": 2, "packing": False},
        "generation": {"steps": 2, "guidance": 2.0},
    }


def trial(combination: Combination, parts: Parts, registry: Registry, folder: Path) -> None:
    """Try a combination; write a checkpoint to `folder`.

    Raises:
        AssertionError: a step of the trial fails; other errors are those of the step.
    """
    loaded_recipe = recipe_from_dict(recipe(combination, parts), registry, where=str(combination))
    fitted = fit(loaded_recipe, registry)
    assert not fitted.problems, f"check: {fitted.problems}"
    model = build(fitted)
    model.set_trainable(loaded_recipe.train.trainable)
    model.eval()  # switches dropout off
    batch = fixed_batch(model)
    before = train_step(model, batch)
    after = losses(model, batch)
    assert after < before, f"expected a lower loss after a step, got {before} before and {after} after"

    save_checkpoint(model, folder, registry=registry)
    loaded, _ = load_checkpoint(folder, registry)
    loaded.eval()
    again = losses(loaded, batch)
    assert torch.equal(again, after), f"expected the loss {after} after loading, got {again}"
    draw(loaded)


def fixed_batch(model: DreamModel) -> Batch:
    """Return two documents, one with a drawn image and one with a read image, with fixed noise and timesteps."""
    decoder, encoder = model.image_decoder, model.vision_encoder
    documents = [
        Document((Text("a cat"), Image(random_image(0), draw=True)), name="draws"),
        Document((Image(random_image(1)), Text("a dog")), name="reads"),
    ]
    collator = Collator(model.sequencer(), encoder.preprocess, decoder.preprocess, packing=False)
    batch = collator(documents)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = decoder.encode(batch.targets_MCHW, generator)
    timesteps = decoder.timesteps(len(latents), generator)
    noise = unit_noise(latents.shape, generator, latents)
    return replace(batch, latents=latents, noise=noise, timesteps=timesteps)


def random_image(seed: int) -> PIL.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
    return PIL.fromarray(pixels.numpy())


@torch.no_grad()
def losses(model: DreamModel, batch: Batch) -> Tensor:
    return model(batch).loss


def train_step(model: DreamModel, batch: Batch) -> Tensor:
    """Run a step of AdamW and return the loss before it; gradients must reach exactly the trained parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0)
    loss = model(batch).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None
        assert reached == parameter.requires_grad, (
            f"{name}: expected a gradient: {parameter.requires_grad}, got one: {reached}"
        )
        assert not reached or parameter.grad.isfinite().all(), f"expected a finite gradient of {name}"
    reached_parts = {
        name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    trained_parts = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert reached_parts == trained_parts, f"gradients are zero in {trained_parts - reached_parts}"
    optimizer.step()
    return loss.detach()


def draw(model: DreamModel) -> None:
    """Generate a document from scripted logits: a letter, an image, a letter."""
    (letter,) = model.language_model.tokenize(LETTER)[-1:]
    end = model.language_model.spec.eos_ids[0]
    script = iter([letter, model.token_ids[model.special_tokens.dream_start], letter, end])
    real = model.language_model.logits

    def logits(hidden: Tensor) -> Tensor:
        scores = real(hidden)
        return scores.index_fill(-1, torch.tensor(next(script)), scores.max().item() + 1)

    model.language_model.logits = logits  # type: ignore[method-assign]
    try:
        events = list(model.generate("x", seed=1))
    finally:
        del model.language_model.logits
    (image,) = (event.picture for event in events if isinstance(event, ImageDone))
    side = model.image_decoder.spec.image_size
    assert image.size == (side, side), f"expected an image of side {side}, got {image.size}"
    (document,) = collect(events)
    texts = [segment.text for segment in document if isinstance(segment, Text)]
    assert "".join(texts).count(LETTER) == 2, f"expected '{LETTER}' twice, got {texts}"
