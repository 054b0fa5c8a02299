"""Models whose generation is measured, and what they write: text up to a position, and an image on the way.

This file uses public names alone, so that it runs with other versions of dreamkit too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import torch
from PIL import Image as PIL
from torch import Tensor

from dreamkit import Document, DreamModel, Image, Registry, Text, build_model, load_recipe

RECIPES: Final = {"digits": "digits/stage3", "llama": str(Path(__file__).with_name("generation.yaml"))}
SMALL: Final = [
    "model.language_model.config.vocab_size=1000",
    "model.language_model.config.hidden_size=48",
    "model.language_model.config.num_hidden_layers=2",
]
MARK: Final = 1e6  # far above any hidden value, so that the final norm leaves nearly this value alone


@dataclass(frozen=True)
class Course:
    """A course of documents: prompts of a length from `least` to `most`, an image after `draw`, the end after `end`.

    All are positions. `draw` is None for text alone. A mixed prompt begins with an image.
    """

    least: int
    most: int
    draw: int | None
    end: int


def measured_model(name: str, small: bool = False) -> DreamModel:
    """Build a model of `RECIPES`, in evaluation mode; `small` shrinks the LLaMA."""
    registry = Registry.load()
    changes = SMALL if small and name == "llama" else []
    return build_model(load_recipe(RECIPES[name], changes, registry), registry).eval()


def prompts(model: DreamModel, course: Course, documents: int) -> list[Document]:
    """Return always the same prompts of random words, whose lengths differ."""
    random, part = Random(7), model.language_model
    image = model.visual_projector.spec.out_tokens + 2 if course.draw is not None else 0
    made = []
    for number in range(documents):
        words = " ".join("".join(random.choices("etaoinshrdlu", k=5)) for _ in range(course.most))
        # a bos token and the image come before
        ids = part.tokenize(words)[: random.randint(course.least, course.most) - image - 1]
        picture = PIL.frombytes("RGB", (16, 16), random.randbytes(3 * 16 * 16))
        segments = (Text(part.decode(ids)),)
        made.append(Document((Image(picture), *segments) if image else segments, name=f"document {number}"))
    return made


@contextmanager
def on_course(model: DreamModel, course: Course) -> Iterator[None]:
    """Make a model write the tokens that it would write, but draw and end where `course` says.

    A hidden state gets a mark at these positions, by which its logits are known.
    """
    part: Any = model.language_model
    forward, head = part.forward, part.logits
    dream, end = model.token_ids["<dream_start>"], part.spec.eos_ids[0]
    tokens = {0: (course.draw, dream), 1: (course.end, end)}

    def marked_forward(embeds_BTD: Tensor, position_ids_BT: Tensor, *others: Any, **named: Any) -> Tensor:
        hidden_BTD = forward(embeds_BTD, position_ids_BT, *others, **named)
        for place, (position, _) in tokens.items():
            if position is not None:
                hidden_BTD[..., place].masked_fill_(position_ids_BT == position, MARK)
        return hidden_BTD

    def course_logits(hidden_ND: Tensor) -> Tensor:
        logits_NV = head(hidden_ND)
        for place, (_, token) in tokens.items():
            # the norm of a row is about the square root of its width
            is_marked_N = hidden_ND[..., place].square() > hidden_ND.square().sum(-1) / 2
            logits_NV[..., token] = torch.where(is_marked_N, 1e4, -1e4)
        return logits_NV

    with patch.object(part, "forward", marked_forward), patch.object(part, "logits", course_logits):
        yield
