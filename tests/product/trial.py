"""What is tried with one combination: checked, built, trained, saved, loaded, and generated from."""

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
    """Stage II with miniature parts: all but the vision encoder and the image decoder learns."""
    model = {key: parts[key][name] for key, name in combination._asdict().items()}
    trainable = ["language_model", "visual_projector", "condition_projector", "dream_queries", "new_tokens"]
    return {
        "model": {**model, "visual_projector": {"name": "linear"}, "dream_queries": 3},
        "train": {"trainable": trainable, "steps": 1, "batch_size": 2, "packing": False},
        "generation": {"steps": 2, "guidance": 2.0},
    }


def trial(combination: Combination, parts: Parts, registry: Registry, folder: Path) -> None:
    """Raises where something of it fails; a checkpoint is written to `folder`."""
    made = recipe_from_dict(recipe(combination, parts), registry, where=str(combination))
    found = fit(made, registry)
    assert not found.problems, f"check: {found.problems}"
    model = build(found)
    model.set_trainable(made.train.trainable)
    model.eval()  # nothing drops out
    batch = fixed_batch(model)
    before = learn(model, batch)
    after = losses(model, batch)
    assert after < before, f"a step took the loss from {before} to {after}"

    save_checkpoint(model, folder, registry=registry)
    loaded, _ = load_checkpoint(folder, registry)
    loaded.eval()
    again = losses(loaded, batch)
    assert torch.equal(again, after), f"the loss was {after} and is {again} after loading"
    draw(loaded)


def fixed_batch(model: DreamModel) -> Batch:
    """Two documents, one of which is drawn and one read, with the noise and the timesteps that any step is to use."""
    decoder, encoder = model.image_decoder, model.vision_encoder
    documents = [
        Document((Text("a cat"), Image(picture(0), draw=True)), name="draws"),
        Document((Image(picture(1)), Text("a dog")), name="reads"),
    ]
    collator = Collator(model.sequencer(), encoder.preprocess, decoder.preprocess, packing=False)
    batch = collator(documents)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = decoder.encode(batch.targets_MCHW, generator)
    timesteps = decoder.timesteps(len(latents), generator)
    noise = unit_noise(latents.shape, generator, latents)
    return replace(batch, latents=latents, noise=noise, timesteps=timesteps)


def picture(seed: int) -> PIL.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (24, 24, 3), generator=generator, dtype=torch.uint8)
    return PIL.fromarray(pixels.numpy())


@torch.no_grad()
def losses(model: DreamModel, batch: Batch) -> Tensor:
    return model(batch).loss


def learn(model: DreamModel, batch: Batch) -> Tensor:
    """One step of AdamW, whose gradients reach what is trained, all of it, and nothing else; the loss before it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0)
    loss = model(batch).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None
        assert reached == parameter.requires_grad, (
            f"{name}: trained {parameter.requires_grad}, reached {reached}"
        )
        assert not reached or parameter.grad.isfinite().all(), f"{name}: its gradient is not finite"
    reached_parts = {
        name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    wanted = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert reached_parts == wanted, f"gradients are zero in {wanted - reached_parts}"
    optimizer.step()
    return loss.detach()


def draw(model: DreamModel) -> None:
    """A document is gone on with, as if the model had been taught what to say: a letter, an image, a letter."""
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
    assert image.size == (side, side), f"an image of {image.size} was drawn, not one of {side}"
    (document,) = collect(events)
    texts = [segment.text for segment in document if isinstance(segment, Text)]
    assert "".join(texts).count(LETTER) == 2, f"{texts} was written"
