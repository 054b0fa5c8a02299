"""One image after each prompt, without text between them: the language model runs once, then the image decoder.

N images; other shape suffixes are those of `dreamkit.parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image as PIL
from torch import Tensor

from dreamkit.data.sequence import Sequencer
from dreamkit.document import Document, Text
from dreamkit.errors import DocumentError, DreamkitError, count, describe_error
from dreamkit.model.finite import drawn_problems, finite_rows
from dreamkit.parts.decoder import ImageDecoder
from dreamkit.recipe.generation_section import GenerationSection

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from dreamkit.model.model import DreamModel


def check_schedule(decoder: ImageDecoder, options: GenerationSection) -> None:
    """Check that a decoder has the scheduler of `options`, for this number of steps.

    Raises:
        DreamkitError: it has not.
    """
    name, steps = options.scheduler, options.steps
    try:
        decoder.scheduler(name).set_timesteps(steps)
    except ValueError as error:
        scheduler = "the decoder's own scheduler" if name is None else f"scheduler '{name}'"
        raise DreamkitError(
            f"cannot draw in {count(steps, 'step')} with {scheduler}: {describe_error(error)}"
        ) from error


def check_size(decoder: ImageDecoder, options: GenerationSection) -> None:
    """Check that a decoder can draw images of the size of `options`.

    Raises:
        DreamkitError: it cannot.
    """
    try:
        if options.size is not None:
            decoder.spec.latent_shape(options.size)
    except ValueError as error:
        raise DreamkitError(f"size: {error}") from error


def negative_document(options: GenerationSection) -> Document:
    """Return the prompt from which guidance leads away; the empty one is that of training without a condition."""
    text = options.negative_prompt
    return Document((Text(text),) if text else (), name="negative_prompt")


def check_room(sequencer: Sequencer, prompt: Document) -> None:
    """Check that an image to draw fits after a prompt.

    Raises:
        DocumentError: both together are longer than the model's length.
    """
    length, image = len(sequencer.prompt(prompt)), sequencer.dream_queries + 2
    if length + image > sequencer.max_length:
        raise DocumentError(
            f"{prompt.name}: expected at most {count(sequencer.max_length, 'token')}, got {length} and {image} of an "
            "image to draw; shorten it"
        )


def draw_images(
    model: DreamModel, prompts: Sequence[Document], seeds: Sequence[int], options: GenerationSection
) -> list[Picture | DreamkitError]:
    """Draw an image after each of N prompts, or return the error about its values, which are not finite.

    The calls of parts do not depend on the prompts, nor on their number: several processes can share the parts.
    """
    is_guided = options.guidance != 1.0
    negative = [negative_document(options)] if is_guided else []
    condition = model.condition(model.dream_states([*prompts, *negative]))
    decoder, images = model.image_decoder, len(prompts)
    finite: list[Tensor] = []  # rows of the latents of each step
    for step in decoder.draw_steps(
        condition[:images],
        condition[[-1] * images] if is_guided else None,
        scheduler=options.scheduler,
        steps=options.steps,
        guidance=options.guidance,
        size=options.size,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    ):
        finite.append(finite_rows(step.latents))
    decoded = decoder.decode(step.latents)  # of the last step
    problems = drawn_problems([prompt.name for prompt in prompts], finite, finite_rows(decoded))
    return [
        to_picture(image) if problem is None else DreamkitError(problem)
        for image, problem in zip(decoded, problems, strict=True)
    ]


def to_picture(image_CHW: Tensor) -> Picture:
    """Convert an image (3, H, W) in [0, 1] to a PIL image with 8 bits a channel."""
    return PIL.fromarray((image_CHW.float() * 255).round().byte().permute(1, 2, 0).cpu().numpy())
