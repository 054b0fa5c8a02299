"""The race: a training step of a miniature on a CPU, in float32, beside a padded eager one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase

import torch
from PIL import Image as PIL

from benchmarks.measure import Case
from benchmarks.training_step import Step, without_fused_paths
from dreamkit.document import Document, Image, Segment, Text
from dreamkit.errors import count
from dreamkit.recipe.loading import load_recipe
from dreamkit.recipe.sections import Recipe
from dreamkit.registry.registry import Registry

RECIPE = Path(__file__).with_name("race.yaml")
SMALL = [
    f"model.language_model.config.{key}"
    for key in ("vocab_size=1000", "hidden_size=64", "num_hidden_layers=2")
]


@dataclass(frozen=True)
class Shape:
    """A batch of the race: the number of documents, the side of an image to read, dream queries of one to draw."""

    documents: int
    pixels: int
    queries: int

    def __str__(self) -> str:
        return f"{count(self.documents, 'document')}, {count((self.pixels // 14) ** 2, 'image token')}"


SHAPES = (Shape(8, 112, 16), Shape(16, 112, 16), Shape(8, 224, 64))


def recipe(shape: Shape, small: bool = False, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a shape with other settings; `small` shrinks the language model."""
    settings = [
        f"model.vision_encoder.config.image_size={shape.pixels}",
        f"model.dream_queries={shape.queries}",
        f"train.global_batch={shape.documents}",
    ]
    return load_recipe(str(RECIPE), [*settings, *(SMALL if small else []), *changes], Registry.load())


def documents(shape: Shape) -> list[Document]:
    """Return always the same documents: up to four texts of 20 to 120 bytes, a token each, and one or two images.

    Every second document's images are drawn and read back, the others' are read.
    """
    random = Random(7)

    def text() -> Text:
        return Text("".join(random.choices(ascii_lowercase, k=random.randint(20, 120))))

    def image(draw: bool) -> Image:
        picture = PIL.frombytes("RGB", (8, 8), random.randbytes(3 * 8 * 8))
        return Image(picture.resize((shape.pixels, shape.pixels)), draw=draw)

    def document(number: int) -> Document:
        segments: list[Segment] = [text() for _ in range(random.randint(1, 4))]
        for _ in range(random.randint(1, 2)):
            segments.insert(random.randint(1, len(segments)), image(draw=number % 2 == 0))
        return Document(tuple(segments), name=f"{number}")

    return [document(number) for number in range(shape.documents)]


def step(shape: Shape, device: torch.device, small: bool = False) -> Step:
    """Return the step of a shape."""
    return Step(recipe(shape, small), lambda model: documents(shape), device, small)


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """Return the shapes; both candidates start from the same weights and draw the same noise."""
    unfused = without_fused_paths()
    candidates = {
        "eager, padded, masked": unfused(Step.run_masked),
        "ours": lambda step: step.run(step.model, step.packed),
    }
    for shape in SHAPES[:1] if small else SHAPES:
        yield Case(
            f"race, {shape}",
            lambda shape=shape: [step(shape, device, small)],
            candidates,
            tolerance=1e-5,
        )
