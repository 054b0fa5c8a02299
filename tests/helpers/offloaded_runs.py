"""Generation on a second device, with all parts there and with offloaded ones, compared in a process of its own.

`test_offloading.py` runs this file, because a second device stays in its process. It prints what it found, as JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import tiny
from dreamkit.build.build import build
from dreamkit.build.fit import fit
from dreamkit.document import Document, Image, Text
from dreamkit.errors import DreamkitError
from dreamkit.model.events import collect
from dreamkit.model.model import DreamModel
from dreamkit.model.offloading import Turns
from dreamkit.model.placing import Placement
from dreamkit.parts.part import Part
from dreamkit.recipe.loading import recipe_from_dict
from dreamkit.recipe.sections import WITH_SOURCE
from dreamkit.registry.registry import Registry
from second_device import DEVICE, SecondDevice

PROMPTS = [
    Document((Image(tiny.picture(1)), Text("is a dog"), Image(tiny.picture(2), draw=True)), name="drawn"),
    Document((Text("x"),), name="text"),
]


def outputs(model: DreamModel) -> list[Any]:
    """Return what each of the model's ways to generate makes, as plain values."""
    assert model.recipe is not None
    documents = collect(model.generate(PROMPTS, seed=1, max_images=0, max_tokens=4))
    images = model.draw(PROMPTS, [0, 1], model.recipe.generation)
    assert not [image for image in images if isinstance(image, DreamkitError)]
    return [
        written(model),
        [document.text for document in documents],
        model.dream_states(PROMPTS).tolist(),
        [image.tobytes().hex() for image in images],  # type: ignore[union-attr]
    ]


def written(model: DreamModel) -> list[Any]:
    """Return the texts and the image of a document whose tokens are given: an image between two letters."""
    language_model, dream_start = model.language_model, model.token_ids[model.special_tokens.dream_start]
    (letter,), end = language_model.tokenize("A"), language_model.spec.eos_ids[0]
    tokens, real = iter([letter, dream_start, letter, end]), language_model.logits

    def logits(hidden: Tensor) -> Tensor:
        scores = real(hidden)
        return scores.index_fill(
            -1, torch.tensor(next(tokens), device=scores.device), scores.max().item() + 1
        )

    with patch.object(language_model, "logits", logits):
        (document,) = collect(model.generate(PROMPTS[0], seed=1))
    (image,) = (segment for segment in document.segments[len(PROMPTS[0]) :] if isinstance(segment, Image))
    return [document.text, image.picture.tobytes().hex()]


def kinds(part: Part) -> list[str]:
    return sorted({tensor.device.type for tensor in (*part.parameters(), *part.buffers())})


def run(dtype: torch.dtype) -> dict[str, Any]:
    recipe = recipe_from_dict(tiny.recipe(), Registry.load(), where="tiny")
    model = build(fit(recipe, Registry.load())).requires_grad_(False)
    brought: list[str] = []
    largest = Counter[str]()
    real = Turns.bring

    def bring(turns: Turns, part: Part) -> None:
        before = turns.moves
        real(turns, part)
        if turns.moves > before:
            (name,) = (name for name, each in model.parts().items() if each is part)
            there = [name for name in WITH_SOURCE if kinds(model.parts()[name]) == [DEVICE.type]]
            brought.append(name)
            largest[", ".join(there)] += 1

    with SecondDevice(), patch.object(Turns, "bring", bring):
        whole = outputs(Placement(DEVICE, dtype).put(model))
        places = {name: kinds(part) for name, part in model.parts().items()}
        offloaded = outputs(Placement(DEVICE, dtype, offload=True).put(model))
        moves = brought.copy()
        again = outputs(Placement(DEVICE, dtype).put(model))
        on_host = outputs(Placement(torch.device("cpu")).put(model))
    return {
        "places": places,
        "is equal": offloaded == whole,
        "is equal after offloading": again == whole,
        "texts on the host": on_host[0] == whole[0],
        "moves": moves,
        "moves after offloading": len(brought) - len(moves),
        "together": dict(largest),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        print(json.dumps({name: run(getattr(torch, name)) for name in ("float32", "bfloat16")}))
