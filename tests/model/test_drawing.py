"""Drawing an image after each prompt: the image that `generate` draws, if the model starts one at once."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, DreamkitError
from dreamkit.model.drawing import check_room
from dreamkit.model.events import ImageDone
from dreamkit.recipe.generation_section import GenerationSection

MODEL = tiny.model()
PROMPTS = ["a", "a longer prompt, with another number of tokens", ""]
SEEDS = [0, 5, 2]


@pytest.fixture
def dreaming() -> Iterator[None]:
    """Make the model write the dream token in each step."""

    def logits(hidden: Tensor) -> Tensor:
        scores = torch.zeros(*hidden.shape[:-1], len(MODEL.language_model.head().weight))
        scores[..., MODEL.token_ids["<dream_start>"]] = 5.0
        return scores

    with patch.object(MODEL.language_model, "logits", logits):
        yield


@pytest.mark.usefixtures("dreaming")
@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1.0},
        {"guidance": 3.0},
        {"guidance": 3.0, "negative_prompt": "not this", "size": (16, 24)},
    ],
)
def test_an_image_is_that_of_generate_with_the_same_seed(options: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"steps": 3, "max_images": 1, **options}
    drawn = MODEL.draw(PROMPTS, SEEDS, GenerationSection(**settings))
    generated = [
        event.picture
        for event in MODEL.generate(PROMPTS, seed=SEEDS, **settings)
        if isinstance(event, ImageDone)
    ]
    assert len(drawn) == len(generated) == 3
    for image, expected in zip(drawn, generated, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(np.asarray(drawn[0]).astype(int) - np.asarray(drawn[1])).max() > 10  # images differ
    height, width = options.get("size", (16, 16))
    assert all(image.size == (width, height) for image in drawn if not isinstance(image, DreamkitError))


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    """With guidance w the prediction is negative + w (positive - negative): at w = 0 it is that of the other prompt."""

    def draw(prompt: str, **options: Any) -> Any:
        (image,) = MODEL.draw([prompt], [3], GenerationSection(steps=2, **options))
        return np.asarray(image).astype(int)

    one, other = "a", "something else"
    assert np.abs(draw(one, guidance=0, negative_prompt=other) - draw(other, guidance=1)).max() <= 1
    assert np.abs(draw(one, guidance=0) - draw("", guidance=1)).max() <= 1
    assert np.abs(draw(one, guidance=5) - draw(one, guidance=5, negative_prompt=other)).max() > 3
    assert np.array_equal(draw(one, guidance=1), draw(one, guidance=1, negative_prompt=other))


def test_values_that_are_not_finite_are_the_error_of_their_image_alone() -> None:
    def decode(latents: Tensor, decode: Any = MODEL.image_decoder.decode) -> Tensor:
        images = decode(latents)
        images[1] = torch.nan
        return images

    with patch.object(MODEL.image_decoder, "decode", decode):
        first, second, third = MODEL.draw(PROMPTS, SEEDS, GenerationSection(steps=1))
    assert str(second) == "prompt 1: expected finite pixels, got NaN or inf"
    assert not isinstance(first, DreamkitError) and not isinstance(third, DreamkitError)


def test_drawing_leaves_the_mode_of_the_model() -> None:
    model = tiny.model().train()
    modes = [module.training for module in model.modules()]
    model.draw(["a"], [0], GenerationSection(steps=1))
    assert model.training and [module.training for module in model.modules()] == modes


def test_a_prompt_leaves_room_for_the_image() -> None:
    sequencer = MODEL.sequencer()

    def prompt(letters: int) -> Document:
        return Document((Text("a" * letters),), name="long")

    other = len(sequencer.prompt(prompt(1))) - 1  # tokens before the text
    room = sequencer.max_length - len(MODEL.dream_queries) - 2 - other
    check_room(sequencer, prompt(room))
    with pytest.raises(DocumentError, match=r"^long: expected at most 256 tokens, got 252 and 5 of an image"):
        check_room(sequencer, prompt(room + 1))
